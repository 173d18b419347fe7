"""What a resumed training checks and restores: the same config, and metrics.json as it would be."""

import json
import logging
import numbers
from pathlib import Path

import torch
import yaml
from detectron2.utils.events import EventStorage

from ..utils.config_files import check_size
from ..utils.files import FileFormatError
from ..utils.text import one_line
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
    try:
        check_size(old, "the config")
        old = _flat(yaml.safe_load(old))
    except (AttributeError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise FileFormatError(
            f"{file}: the config that it was trained with is damaged: {one_line(error)}. Resume "
            "from another checkpoint"
        ) from error
    new = _flat(yaml.safe_load(cfg.dump()))
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


def check_alike(given, expected, name: str = "trainer") -> None:
    """Check that the state of a training in a checkpoint is built like that of this training.

    Dicts that are empty at the start, such as that of momentum, and keys of other versions may
    hold anything.

    Raises:
        ValueError: names the entry that is not.
    """
    kinds = (dict, list, str, numbers.Real)
    for kind in kinds:
        if isinstance(expected, kind) and not isinstance(given, kind):
            raise ValueError(f"{name} is a {type(given).__name__}; expected a {kind.__name__}")
    if isinstance(expected, dict):
        for key in given.keys() & expected.keys():
            check_alike(given[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list):
        for value, like in zip(given, expected, strict=True):
            check_alike(value, like, f"{name}[]")
    elif isinstance(expected, int) and not -(2**62) < given < 2**62:
        raise ValueError(f"{name} is no number of a training")


def own_tensors(optimizer) -> None:
    """Give an optimizer's state memory of its own; in a file, tensors may share or overlap.

    Raises:
        ValueError: a momentum of SGD does not fit its parameter.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                if name == "momentum_buffer" and value.shape != parameter.shape:
                    raise ValueError(
                        f"{name} of shape {tuple(value.shape)} for a parameter of shape "
                        f"{tuple(parameter.shape)}"
                    )
                state[name] = value.clone()


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


def check_scalars(scalars: dict) -> None:
    """Check that these are `scalars_of` a training.

    Raises:
        ValueError: they are not.
    """
    for name, scalar in scalars.items():
        try:
            values, _ = scalar["values"], scalar["smooth"]
            pairs = values and all(isinstance(v, float) and isinstance(i, int) for v, i in values)
        except (KeyError, TypeError, ValueError):
            pairs = False
        if not pairs or not isinstance(name, str):
            raise ValueError(f"scalars {one_line(name)} are no values of iterations")


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
