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
CHECKPOINTS = re.compile(r"model_.*\.pth|last_checkpoint")
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
    if part.exists() or any(map(_shows_training, found)):
        check_weights_stay(cfg)
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
    (folder / JOB).unlink(missing_ok=True)
    if job:
        (folder / JOB).write_text(job, encoding="utf-8")


def check_weights_stay(cfg) -> None:
    """Check that MODEL.WEIGHTS is no file that `put_aside` moves.

    Raises:
        ValueError: it is.
    """
    weights, folder = Path(cfg.MODEL.WEIGHTS), Path(cfg.OUTPUT_DIR)
    inside = folder.resolve() == weights.resolve().parent
    if inside and FILES.fullmatch(weights.resolve().name):
        raise ValueError(
            f"MODEL.WEIGHTS {weights} is a checkpoint of the earlier training in OUTPUT_DIR "
            f"{folder}: name another OUTPUT_DIR, or add --resume to continue it"
        )


def _shows_training(file: Path) -> bool:
    """A start that fails before it trains leaves the other files, metrics.json empty."""
    return bool(CHECKPOINTS.fullmatch(file.name)) or (
        file.name == "metrics.json" and file.stat().st_size > 0
    )


def begun_by(job: str, folder) -> bool:
    """Return True if this torchrun job began the training in a folder.

    A job whose processes were started again then continues its own training, and no other.
    """
    file = Path(folder) / JOB
    return file.is_file() and file.read_text("utf-8", "replace") == job
