"""Loading a checkpoint that must fit."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer

ANCHORS = "anchor_generator.cell_anchors"


class StrictCheckpointer(DetectionCheckpointer):
    """Refuses a file that does not fit its model whole, where `DetectionCheckpointer` warns.

    `load` raises FileNotFoundError where there is no file, and ValueError on one that is no
    checkpoint or that is of another network.
    """

    def load(self, path, *args, **kwargs):
        # What follows the "?" is no part of the name (Detectron2 main).
        if path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"{path}: no such checkpoint")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename):
        self._file = filename
        try:
            checkpoint = super()._load_file(filename)
        except OSError:
            raise
        except Exception as error:  # unpickling raises any type
            reason = str(error).partition("\n")[0]
            raise self._no_checkpoint(f"{type(error).__name__}: {reason}") from error
        if not isinstance(checkpoint["model"], Mapping):
            raise self._no_checkpoint(f"it holds a {type(checkpoint['model']).__name__}")
        return checkpoint

    def _no_checkpoint(self, reason):
        return ValueError(f"{self._file} is no checkpoint of Detectron2 ({reason})")

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        problems = {
            "not in the file": incompatible.missing_keys,
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
