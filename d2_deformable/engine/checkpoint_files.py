"""The checkpoint files of a training: written so that a crash loses none, found again undamaged."""

import logging
import os
import re
from pathlib import Path

import detectron2.utils.comm as comm
import torch
from detectron2.config import get_cfg

from ..checkpoint import FileFormatError
from ..checkpoint.files import read_content
from ..utils.files import replacing, sha256

# Checkpoints that hold the state of the training; model_ema.pth has weights only.
RESUMABLE = re.compile(r"model_(\d+|final|best)\.pth")
PERIODIC = re.compile(r"model_(\d+)\.pth")
# Detectron2's default, which a short run would never reach.
DEFAULT_PERIOD = get_cfg().SOLVER.CHECKPOINT_PERIOD

logger = logging.getLogger(__name__)


def write_checkpoint(content: dict, file: Path) -> None:
    """Write a checkpoint, and its SHA-256 beside it as `sha256sum` does.

    At any moment either the old file is complete or the new one, also after a loss of power.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    for leftover in file.parent.glob(".*.part*"):  # of a process that was killed
        if leftover.name.startswith((".model_", ".last_checkpoint.")):
            leftover.unlink()
    digest_of(file).unlink(missing_ok=True)  # the old one must never stand beside the new file
    with replacing(file, durable=True) as part:
        with open(part, "wb") as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:  # torch's zip writer hides the error of the disk
                raise (error.__context__ or OSError(f"{file}: {error}")) from error
        digest = sha256(part)
    with replacing(digest_of(file), durable=True) as part:
        part.write_text(f"{digest}  {file.name}\n")


def remove_old(folder: Path, iteration: int, keep: int) -> None:
    """Delete the checkpoints up to `iteration` but the last `keep`; later ones are another run's.

    Those with a name instead of an iteration, e.g. model_final.pth, stay.
    """
    numbered = {int(m[1]): f for f in folder.iterdir() if (m := PERIODIC.fullmatch(f.name))}
    for number in sorted(n for n in numbered if n <= iteration)[:-keep]:
        digest_of(numbered[number]).unlink(missing_ok=True)
        numbered[number].unlink()


def named_checkpoint(folder: Path) -> str:
    """The file name in "last_checkpoint", "" if there is no such file or it is damaged."""
    try:
        with open(folder / "last_checkpoint", "rb") as file:
            text = file.read(4096).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    return Path(text.strip("\0 \n\r\t")).name


def checkpoint_to_resume(cfg) -> Path | None:
    """Find the checkpoint in OUTPUT_DIR that --resume continues from; log if there is none.

    The first process decides for all.

    Raises:
        FileNotFoundError, FileFormatError: see `find_checkpoint`.
        ValueError: another process does not see the file.
    """
    file = find_checkpoint(Path(cfg.OUTPUT_DIR)) if comm.is_main_process() else None
    file = comm.all_gather(file)[0]
    blind = [
        rank for rank, sees in enumerate(comm.all_gather(not file or file.is_file())) if not sees
    ]
    if blind:
        raise ValueError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: process 0 resumes from {file}, which process {blind[0]} "
            "does not see. Name a folder that all machines share"
        )
    if not file:
        weights = cfg.MODEL.WEIGHTS
        start = f"MODEL.WEIGHTS {weights}" if weights else "random weights"
        logger.warning("--resume: no checkpoint in %s, starting from %s", cfg.OUTPUT_DIR, start)
    return file


def find_checkpoint(folder: Path) -> Path | None:
    """Find the newest undamaged checkpoint that a training can resume from.

    It is the one that "last_checkpoint" names; if that is damaged or missing, the one with the
    highest iteration among the others, with a warning.

    Returns:
        None if the folder holds no checkpoint.

    Raises:
        FileNotFoundError: "last_checkpoint" names a file that is missing, and there is no other.
        FileFormatError: every checkpoint is damaged; names them.
    """
    name = named_checkpoint(folder)
    files = [f for f in folder.glob("model_*.pth") if RESUMABLE.fullmatch(f.name) and f.exists()]
    files = _newest_first(files)
    if name and os.path.isfile(folder / name):  # False, too, for names that cannot be
        files = list(dict.fromkeys([folder / name, *files]))
    elif files:
        what = (
            f"names {name[:80]!r}, and there is no such file" if name else "is missing or damaged"
        )
        logger.warning("%s/last_checkpoint %s; taking the newest checkpoint", folder, what)
    elif name:
        raise FileNotFoundError(
            f"{folder / name[:80]}: no such file, from {folder}/last_checkpoint. Restore it, or "
            "train anew without --resume"
        )
    problems = []
    for file in files:
        if not (problem := damage(file)):
            return file
        problems.append(problem)
        logger.warning("%s. Trying the checkpoint before it", problem)
    if problems:
        raise FileFormatError(
            f"{folder}: every checkpoint is damaged ({'; '.join(problems)}). Restore one, or train "
            "anew without --resume"
        )
    return None


def _newest_first(files: list[Path]) -> list[Path]:
    """Sort by iteration. The times, which copying may change, only place model_final.pth; that of
    model_best.pth is last."""
    times = {file: file.stat().st_mtime for file in files}
    iterations = {file: int(m[1]) for file in files if (m := PERIODIC.fullmatch(file.name))}

    def iteration(file):
        if file.name == "model_best.pth":
            return -1
        earlier = (n for other, n in iterations.items() if times[other] <= times[file])
        return iterations.get(file, max(earlier, default=0) + 0.5)

    return sorted(files, key=iteration, reverse=True)


def damage(file: Path) -> str:
    """Say what is wrong with a checkpoint; "" if it is complete."""
    digest = digest_of(file)
    if digest.is_file():
        if sha256(file) == digest.read_text(errors="replace").partition(" ")[0].lower():
            return ""
        return (
            f"{file} is damaged: its SHA-256 is not that of {digest.name}, which you may delete if "
            "you have changed the file yourself"
        )
    try:
        read_content(file)
    except (FileFormatError, OSError) as error:
        return f"{file} is damaged: {error}"
    return ""


def digest_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def checkpoint_period(cfg) -> int:
    """Return SOLVER.CHECKPOINT_PERIOD; if it was left at Detectron2's default and the run is
    shorter than that, a fifth of the run but at least 100 iterations."""
    period, iterations = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER
    if period == DEFAULT_PERIOD > iterations:
        return max(100, iterations // 5)
    return period
