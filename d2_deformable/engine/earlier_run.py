"""Keep an earlier training in OUTPUT_DIR apart from a new one."""

import itertools
import logging
import os
import re
import shutil
from pathlib import Path

from ..utils.files import replacing

logger = logging.getLogger(__name__)

# What a new training would overwrite or add to. log.txt is open already, and holds all trainings.
FILES = re.compile(
    r"model_(\d+|final|best|ema)\.pth(\.sha256)?|last_checkpoint|metrics\.json"
    r"|events\.out\.tfevents\..*|inference(_EMA|_TTA)?"
)
CONFIG = "config.yaml"  # is copied: --config-file may name it
CHECKPOINTS = re.compile(r"model_.*\.pth|last_checkpoint")
PART = "earlier.part"  # becomes earlier_N when it is complete
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
    if any(map(_shows_training, found)):
        check_weights_stay(cfg)
        (part := folder / PART).mkdir()
        for file in found:
            file.rename(part / file.name)
        if (folder / CONFIG).is_file():
            shutil.copy2(folder / CONFIG, part)
        aside = part.rename(_free_name(folder))
        logger.warning(
            "%s holds an earlier training, which is now in %s; to continue that one, add --resume "
            "and OUTPUT_DIR %s",
            folder,
            aside,
            aside,
        )
    (folder / JOB).unlink(missing_ok=True)
    if job:
        with replacing(folder / JOB) as file:
            file.write_text(job, encoding="utf-8")


def put_back(folder) -> None:
    """Move files back that a start was putting aside when it was killed."""
    folder = Path(folder)
    if not (part := folder / PART).is_dir():
        return
    (part / CONFIG).unlink(missing_ok=True)
    for file in list(part.iterdir()):
        if not os.path.lexists(folder / file.name):
            file.rename(folder / file.name)
    if any(part.iterdir()):  # something has run in the meantime
        part.rename(_free_name(folder))
    else:
        part.rmdir()


def _free_name(folder: Path) -> Path:
    names = (folder / f"earlier_{number}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def check_weights_stay(cfg) -> None:
    """Check that MODEL.WEIGHTS is no file that `put_aside` moves.

    Raises:
        ValueError: it is.
    """
    weights, folder = Path(cfg.MODEL.WEIGHTS), Path(cfg.OUTPUT_DIR)
    paths = weights.absolute(), weights.resolve()
    if any(p.parent.resolve() == folder.resolve() and FILES.fullmatch(p.name) for p in paths):
        raise ValueError(
            f"MODEL.WEIGHTS {weights} is a checkpoint of the earlier training in OUTPUT_DIR "
            f"{folder}: name another OUTPUT_DIR, or add --resume to continue it"
        )


def _shows_training(file: Path) -> bool:
    """A start that fails before it trains leaves the other files, metrics.json empty."""
    is_checkpoint = CHECKPOINTS.fullmatch(file.name)
    return bool(is_checkpoint) or (file.name == "metrics.json" and file.read_bytes() != b"")


def begun_by(job: str, folder) -> bool:
    """Return True if this torchrun job began the training in a folder.

    A job whose processes were started again then continues its own training, and no other.
    """
    file = Path(folder) / JOB
    return bool(job) and file.is_file() and file.read_text("utf-8", "replace") == job
