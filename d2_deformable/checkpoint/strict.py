"""Loading a checkpoint that must fit."""

import logging
from pathlib import Path

from detectron2.modeling import build_model

from .safe import SafeCheckpointer

ANCHORS = "anchor_generator.cell_anchors"

logger = logging.getLogger(__name__)


class StrictCheckpointer(SafeCheckpointer):
    """Refuses a file that does not fit its model whole, where `DetectionCheckpointer` warns.

    Only a file of Detectron2's model zoo, which names its author, may be of the plain twin: then
    the offsets of deformable convolutions are zero, and the model computes what the twin does.

    `load` raises FileNotFoundError where there is no file, and ValueError on one that is no
    checkpoint or that is of another network.
    """

    def load(self, path, *args, **kwargs):
        # What follows the "?" is no part of the name (Detectron2 main).
        if path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename):
        content = super()._load_file(filename)
        self._of_zoo = "__author__" in content
        return content

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        missing = incompatible.missing_keys
        offsets = {name for name in self.model.state_dict() if ".conv_offset." in name}
        if self._of_zoo and offsets and offsets <= set(missing):
            missing = [name for name in missing if name not in offsets]
            logger.warning(
                "%s is of the plain network: all offsets of deformable convolutions are zero",
                self._file,
            )
        problems = {
            "not in the file": missing,
            # Old checkpoints hold the anchors, which are no weights.
            "not in the model": [k for k in incompatible.unexpected_keys if ANCHORS not in k],
            "of another shape": [
                f"{name}: {tuple(theirs)}, here {tuple(ours)}"
                for name, theirs, ours in incompatible.incorrect_shapes
            ],
        }
        found = [f"{len(keys)} {what} ({keys[0]})" for what, keys in problems.items() if keys]
        if found:
            raise ValueError(
                f"{self._file} is of another network, or of another number of classes: "
                f"{', '.join(found)}. Take the config that it was trained with"
            )
        return incompatible


def load_model(cfg, weights):
    """The network of `cfg` with the weights of one file, in evaluation mode.

    Args:
        weights: a path, or any URL that MODEL.WEIGHTS may be.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint, or of another network.
    """
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(weights))
    return model.eval()
