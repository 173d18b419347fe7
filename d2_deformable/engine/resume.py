"""What a resumed training checks and restores: the same config, and metrics.json as it would be."""

import json
import logging
from pathlib import Path

import yaml
from detectron2.utils.events import EventStorage

from . import throughput

logger = logging.getLogger(__name__)

# Keys, and beginnings of keys, that a resumed training may change: they say where and how it runs,
# how long, and how it is tested.
MAY_CHANGE = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH_FACTOR",
    "DATASETS.CUSTOM.",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.TEST",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_MAX_TO_KEEP",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.",
    "VERSION",
    "VIS_PERIOD",
)
WINDOW = 20  # steps that Detectron2's writers take the median of, and wait for
TIMES = ("data_time", "eta_seconds", "rank_data_time", "time", *throughput.SCALARS)
NAMED = 5  # differences that the message shows


def check_same_config(file, old: str, cfg, allow_changes: bool = False) -> None:
    """Check that a training goes on with the config it was started with.

    Keys that do not change what is learned may differ: those of MAY_CHANGE, those that end with
    _TEST, and SOLVER.MAX_ITER where learning rates do not depend on it.

    Args:
        file: the checkpoint, for the message.
        old: the config of the checkpoint, as `cfg.dump()` writes it.
        cfg: the config of this run.
        allow_changes: warn instead of raising.

    Raises:
        ValueError: names the keys that differ, with both values.
    """
    old, new = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(cfg.dump()))
    train = tuple(f"DATASETS.CUSTOM.{name}." for name in cfg.DATASETS.TRAIN)
    may_change = MAY_CHANGE
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        may_change += ("SOLVER.MAX_ITER",)
    # Other versions of the package have other keys, but not other fields of a data set.
    fields = {key for key in old.keys() | new.keys() if key.startswith(train)}
    others = {
        key
        for key in old.keys() & new.keys()
        if not (key.startswith(may_change) or key.endswith("_TEST"))
    }
    changed = [
        f"{key} {old.get(key, 'unset')}, now {new.get(key, 'unset')}"
        for key in sorted(fields | others)
        if old.get(key) != new.get(key)
    ]
    if not changed:
        return
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    difference = f"{file} was trained with {'; '.join(changed[:NAMED])}{more}."
    if not allow_changes:
        raise ValueError(
            f"{difference} Resume with the same config, train into another OUTPUT_DIR, or add "
            "--allow-changes"
        )
    logger.warning(
        "%s The optimizer's settings (BASE_LR, MOMENTUM, WEIGHT_DECAY) stay the checkpoint's",
        difference,
    )


def cut_metrics(file: Path, start: int) -> int:
    """Cut off the lines of metrics.json from iteration `start` on, which will be written again.

    A line that was not written to its end is cut off as well. The file is shortened in place, since
    a writer may have opened it.

    Returns:
        the highest iteration of the lines that stay, -1 if there is none.
    """
    if not file.is_file():
        return -1
    content, kept, last = file.read_bytes(), 0, -1
    for line in content.splitlines(keepends=True):
        try:
            iteration = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):
            break
        if iteration >= start or not line.endswith(b"\n"):
            break
        kept += len(line)
        last = max(last, iteration)  # that of an earlier evaluation may come later
    if kept < len(content):
        lines = content[kept:].count(b"\n") or 1
        logger.info("%s: cut off %d lines from iteration %d on", file, lines, start)
        with open(file, "r+b") as opened:
            opened.truncate(kept)
    return last


def scalars_of(storage: EventStorage) -> dict:
    """The last values of every scalar, as many as Detectron2's writers take the median of.

    Returns:
        {name: {"values": [[value, iteration], ...], "smooth": whether a median is written}}.
    """
    hints = storage.smoothing_hints()
    return {
        name: {
            "values": [[float(value), int(i)] for value, i in history.values()[-WINDOW:]],
            "smooth": hints[name],
        }
        for name, history in storage.histories().items()
    }


def put_scalars(storage: EventStorage, scalars: dict, written: int, times: bool) -> None:
    """Put the values of `scalars_of` into a new storage, without those of which a line was written.

    Args:
        written: the iteration of the last line.
        times: also put those of a step. Detectron2 takes none in the first steps after a start, so
            they would get a line of their own, unless the step's line is written now.
    """
    for name, scalar in scalars.items():
        if scalar["values"][-1][1] > written and (times or name not in TIMES):
            for value, storage.iter in scalar["values"]:
                storage.put_scalar(name, value, smoothing_hint=scalar["smooth"])


def _flat(tree, prefix: str = "") -> dict:
    """{"A.B": value} of nested dicts."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key in tree for k, v in _flat(tree[key], f"{prefix}{key}.").items()}
