"""Loading a checkpoint that must fit."""

from detectron2.checkpoint import DetectionCheckpointer


class StrictCheckpointer(DetectionCheckpointer):
    """Refuses a file that does not fit its model whole, where `DetectionCheckpointer` warns."""

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        problems = {
            "not in the file": incompatible.missing_keys,
            "not in the model": incompatible.unexpected_keys,
            "of another shape": [name for name, *_ in incompatible.incorrect_shapes],
        }
        found = [f"{len(keys)} {what} ({keys[0]})" for what, keys in problems.items() if keys]
        if found:
            raise ValueError(
                f"this checkpoint is of another network: {', '.join(found)}. Take the config that "
                "it was trained with"
            )
        return incompatible
