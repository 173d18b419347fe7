"""Load a checkpoint that must fit the model."""

import logging
from pathlib import Path

from ..modeling import build_model
from ..modeling.meta_arch.predicates import check_soft_nms
from ..utils.text import count, one_line
from .safe import SafeCheckpointer

# Tensors that inference does not need: the anchors in old checkpoints, which are not weights, and
# what only trains with MimicRCNN.
NOT_NEEDED = ("anchor_generator.cell_anchors", "mimic_classifier.")

logger = logging.getLogger(__name__)


class StrictCheckpointer(SafeCheckpointer):
    """Rejects a file that does not fit the whole model, where `DetectionCheckpointer` only warns.

    The one exception is a file of Detectron2's model zoo, recognised by its "__author__". It may
    hold the plain twin, or a network with fewer deformable convolutions. Then the offsets that it
    lacks are zero, and the model computes the same as the file's network.

    `load` raises FileNotFoundError if there is no such file, and ValueError if the file is not a
    checkpoint or is from another network.
    """

    def load(self, path, *args, **kwargs):
        # The query after "?" is not part of the name (Detectron2 main).
        if path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename):
        content = super()._load_file(filename)
        self._from_model_zoo = "__author__" in content
        return content

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        missing = incompatible.missing_keys
        offsets = [name for name in missing if ".conv_offset." in name]
        if self._from_model_zoo and offsets:
            missing = [name for name in missing if name not in offsets]
            logger.warning(
                "%s is from a network where these convolutions are plain: offsets are zero in %s",
                self._file,
                count(sum(name.endswith(".weight") for name in offsets), "layer"),
            )
        problems = {
            "not in the file": list(filter(_is_needed, missing)),
            "not in the model": list(filter(_is_needed, incompatible.unexpected_keys)),
            "of another shape": [
                f"{name}: {tuple(theirs)}, here {tuple(ours)}"
                for name, theirs, ours in incompatible.incorrect_shapes
            ],
        }
        found = [
            f"{len(keys)} {what} ({one_line(keys[0])})" for what, keys in problems.items() if keys
        ]
        if found:
            raise ValueError(
                f"{self._file} is from another network, or has another number of classes: "
                f"{', '.join(found)}. Use the config that it was trained with"
            )
        if name := non_finite_weight(self.model):
            raise ValueError(
                f"{self._file}: {name} is NaN or infinite, so its training has diverged. Give an "
                "earlier checkpoint"
            )
        return incompatible


def non_finite_weight(model) -> str | None:
    """Name the first parameter that is NaN or infinite, or buffer that is NaN.

    Buffers may hold infinity, as masks of attention do.
    """
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        bad = ~value.isfinite() if name in parameters else value.isnan()
        if bad.any():
            return name
    return None


def _is_needed(key: str) -> bool:
    return not any(part in key for part in NOT_NEEDED)


def load_model(cfg, weights):
    """Build the network of `cfg`, load the weights of one file, and set evaluation mode.

    Args:
        weights: a path, or any URL that MODEL.WEIGHTS accepts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, or is from another network; or TEST.SOFT_NMS is
            enabled for a network that does not read it.
    """
    check_soft_nms(cfg)
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(weights))
    return model.eval()
