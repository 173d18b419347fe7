"""Checkpoints of a training: finite weights only, and a check before a training resumes."""

from collections.abc import Callable

from ..checkpoint import SafeCheckpointer
from .non_finite import ADVICE, is_finite


class TrainingCheckpointer(SafeCheckpointer):
    """`SafeCheckpointer` that refuses to save weights which are not finite.

    So "last_checkpoint" keeps naming a good one.

    Attributes:
        before_resuming: called with the trainer's state before a checkpoint's weights are loaded to
            go on with its training; may raise.
    """

    before_resuming: Callable[[dict], None] | None = None

    def save(self, name, **kwargs):
        for weight, value in self.model.state_dict().items():
            if not is_finite(value):
                raise FloatingPointError(
                    f"{weight} is NaN or infinite, so {name}.pth is not saved. {ADVICE}"
                )
        super().save(name, **kwargs)

    def load(self, path, checkpointables=None):
        self._resumes = checkpointables is None
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint):
        if self._resumes and self.before_resuming:
            self.before_resuming(checkpoint.get("trainer", {}))
        return super()._load_model(checkpoint)
