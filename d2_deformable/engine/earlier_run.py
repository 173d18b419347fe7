"""Keep an earlier training in OUTPUT_DIR apart from a new one."""

import logging
import os
from pathlib import Path

CHECKPOINTS = "model_*.pth"
OTHERS = ("*.pth.sha256", "last_checkpoint", "metrics.json", "events.out.tfevents.*", "config.yaml")
JOB = ".job"  # names the torchrun job that began the training in this folder

logger = logging.getLogger(__name__)


def put_aside(cfg) -> None:
    """Move what an earlier training left in OUTPUT_DIR to the subfolder earlier_N.

    Otherwise the new training would overwrite some of its checkpoints, --resume could continue
    from the others, and metrics.json would hold the lines of both.

    Raises:
        ValueError: MODEL.WEIGHTS is one of its checkpoints.
    """
    folder = Path(cfg.OUTPUT_DIR)
    checkpoints = list(folder.glob(CHECKPOINTS))
    if checkpoints or (folder / "metrics.json").is_file():
        if any(_is_same(cfg.MODEL.WEIGHTS, file) for file in checkpoints):
            raise ValueError(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} is a checkpoint of the earlier training in "
                f"OUTPUT_DIR {folder}: name another OUTPUT_DIR, or add --resume to continue it"
            )
        numbers = (n for n in range(1, 10**6) if not (folder / f"earlier_{n}").exists())
        (aside := folder / f"earlier_{next(numbers)}").mkdir()
        for pattern in (CHECKPOINTS, *OTHERS):
            for file in folder.glob(pattern):
                file.rename(aside / file.name)
        logger.warning(
            "%s holds an earlier training, which is now in %s; to continue it, move its files "
            "back and add --resume",
            folder,
            aside,
        )
    (folder / JOB).write_text(_job())


def begun_by_this_job(folder) -> bool:
    """Return True if the training in a folder was begun by the torchrun job of this process."""
    file = Path(folder) / JOB
    return file.is_file() and file.read_text(errors="replace") == _job()


def _is_same(weights: str, file: Path) -> bool:
    return os.path.exists(weights) and os.path.samefile(weights, file)


def _job() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
