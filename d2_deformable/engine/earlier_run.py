"""Keep an earlier training in OUTPUT_DIR apart from a new one."""

import itertools
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

# What a new training would overwrite or add to. log.txt is open already, and holds all trainings.
FILES = re.compile(
    r"model_(\d+|final|best|ema)\.pth(\.sha256)?|last_checkpoint|metrics\.json"
    r"|events\.out\.tfevents\..*|config\.yaml|inference(_EMA|_TTA)?"
)
# Every start writes these, also one that fails before it trains.
WITHOUT_TRAINING = ("config.yaml",)
JOB = ".job"  # holds the name of the torchrun job that began the training


def put_aside(cfg, job: str = "") -> None:
    """Move what an earlier training left in OUTPUT_DIR to its subfolder earlier_N.

    Otherwise the new training would overwrite some of its checkpoints, --resume could continue
    from the others, and metrics.json would hold the lines of both.

    Args:
        job: name of the torchrun job that begins a training now, see `begun_by`.

    Raises:
        ValueError: MODEL.WEIGHTS is one of the files.
    """
    folder = Path(cfg.OUTPUT_DIR)
    found = [file for file in folder.iterdir() if FILES.fullmatch(file.name)]
    part = folder / "earlier.part"  # left by a process that was killed
    if part.exists() or any(file.name not in WITHOUT_TRAINING for file in found):
        if Path(cfg.MODEL.WEIGHTS).resolve() in [file.resolve() for file in found]:
            raise ValueError(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is a checkpoint of the earlier training in "
                f"OUTPUT_DIR {folder}: name another OUTPUT_DIR, or add --resume to continue it"
            )
        part.mkdir(exist_ok=True)
        for file in found:
            file.rename(part / file.name)
        names = (folder / f"earlier_{number}" for number in itertools.count(1))
        aside = part.rename(next(name for name in names if not name.exists()))
        logger.warning(
            "%s holds an earlier training, which is now in %s; to continue that one, add --resume "
            "and OUTPUT_DIR %s",
            folder,
            aside,
            aside,
        )
    (folder / JOB).write_text(job, encoding="utf-8")


def begun_by(job: str, folder) -> bool:
    """Return True if this torchrun job began the training in a folder.

    A job whose processes were started again then continues its own training, and no other.
    """
    file = Path(folder) / JOB
    return bool(job) and file.is_file() and file.read_text("utf-8", "replace") == job
