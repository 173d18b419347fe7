"""Loading a checkpoint that must fit."""

from detectron2.checkpoint import DetectionCheckpointer

ANCHORS = "anchor_generator.cell_anchors"


class StrictCheckpointer(DetectionCheckpointer):
    """Refuses a file that does not fit its model whole, where `DetectionCheckpointer` warns."""

    def _load_file(self, filename):
        self._file = filename
        return super()._load_file(filename)

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
