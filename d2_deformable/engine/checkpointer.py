"""Checkpoints of a training: complete and finite, and a check before a training resumes."""

from collections.abc import Callable
from pathlib import Path

from ..checkpoint import SafeCheckpointer
from ..checkpoint.strict import non_finite_weight
from ..utils.files import replacing
from .checkpoint_files import remove_old, write_checkpoint
from .non_finite import ADVICE


class TrainingCheckpointer(SafeCheckpointer):
    """`SafeCheckpointer` whose files a crash cannot damage, see `write_checkpoint`.

    It refuses to save weights that are not finite, so "last_checkpoint" keeps naming a good file.

    Args:
        keep: delete all but the last `keep` checkpoints of single iterations; 0 keeps all.
        args, kwargs: those of `DetectionCheckpointer`.

    Attributes:
        before_resuming: called with the trainer's state before a checkpoint's weights are loaded to
            go on with its training; may raise.
    """

    before_resuming: Callable[[dict], None] | None = None

    def __init__(self, *args, keep: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.keep = keep

    def save(self, name, **kwargs):
        """Save model, checkpointables and `kwargs` as `name`.pth, unless `save_to_disk` is False.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
            OSError: the disk is full, or the folder cannot be written to.
        """
        if weight := non_finite_weight(self.model):
            raise FloatingPointError(
                f"{weight} is NaN or infinite, so {name}.pth is not saved. {ADVICE}"
            )
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        write_checkpoint({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(file.name)
        if self.keep and "iteration" in kwargs:
            remove_old(file.parent, kwargs["iteration"], self.keep)

    def tag_last_checkpoint(self, last_filename_basename):
        with replacing(Path(self.save_dir) / "last_checkpoint", durable=True) as part:
            part.write_text(last_filename_basename)

    def load(self, path, checkpointables=None):
        self._resumes = checkpointables is None
        return super().load(path, checkpointables)

    def _load_model(self, checkpoint):
        if self._resumes and self.before_resuming:
            self.before_resuming(checkpoint.get("trainer", {}))
        return super()._load_model(checkpoint)
