"""Read back the files that a training run left in its OUTPUT_DIR."""

import ast
import json
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from ..config import add_deformable_config, merge_overrides
from ..evaluation import COUNTS
from ..utils.config_files import merge_from_file
from ..utils.text import one_line
from .checkpoint_files import named_checkpoint

LONGEST_RUN = 10**15  # iterations
LONGEST_COMMAND = 100_000  # characters; Python's parser needs much memory for more


@dataclass(frozen=True)
class FinishedRun:
    """A finished training run.

    folder: its OUTPUT_DIR.
    cfg: its config, not frozen.
    checkpoint: its last weights.
    history: one dict of scalars per logged iteration, in ascending order of "iteration".
    config_file, command: taken from its log; "" if there is no log, or it is damaged.
    """

    folder: Path
    cfg: CfgNode
    checkpoint: Path
    history: list[dict]
    config_file: str
    command: str

    @property
    def name(self) -> str:
        """The YAML's stem, or the folder's name if the YAML is not known."""
        return Path(self.config_file).stem or self.folder.resolve().name

    @property
    def iterations(self) -> int:
        """Number of training iterations, up to the last logged one."""
        steps = [line["iteration"] + 1 for line in self.history if "total_loss" in line]
        return max(steps, default=0)

    @property
    def seconds(self) -> float:
        """Total time of training steps, summed up from the logged times per step."""
        seconds, last = 0.0, -1
        for line in self.history:
            if "time" in line:
                seconds += line["time"] * (line["iteration"] - last)
                last = line["iteration"]
        return seconds

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """Results of the last evaluation, {"bbox": {"AP": ...}, "voc": ...}.

        With several test sets the keys are "<data set>/bbox" and so on.
        """
        return results_by_task({k: v for line in self.history for k, v in line.items()})


def results_by_task(scalars: dict[str, float]) -> dict[str, dict[str, float]]:
    """Turn {"bbox/AP": 28.8, ...} into {"bbox": {"AP": 28.8}, ...}, without other scalars."""
    # The class name at the end may hold any character, e.g. "voc/AP50-and/or".
    counts = "|".join(COUNTS)
    pattern = re.compile(rf"(.+?)/((AP|(m|fw)?IoU|(m|p)?ACC).*|{counts})", re.DOTALL)
    results = {}
    for key, value in scalars.items():
        if match := pattern.fullmatch(key):
            results.setdefault(match[1], {})[match[2]] = value
    return results


def read_run(folder, overrides=()) -> FinishedRun:
    """Read the run whose OUTPUT_DIR is `folder`.

    Args:
        overrides: KEY, VALUE, ... on top of its config.

    Raises:
        FileNotFoundError: the folder holds no config.yaml or no checkpoint.
        ValueError: config.yaml or metrics.json is damaged, or an override has an unknown key or a
            value of the wrong type.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.yaml: give the OUTPUT_DIR of a training run"
        )
    cfg = get_cfg()
    add_deformable_config(cfg)
    cfg.set_new_allowed(True)  # config.yaml is complete, including the keys of other plug-ins
    merge_from_file(cfg, config)
    merge_overrides(cfg, overrides)
    config_file, command = _command(folder / "log.txt")
    return FinishedRun(
        folder, cfg, _checkpoint(folder), _history(folder / "metrics.json"), config_file, command
    )


def _checkpoint(folder):
    """Return the newest checkpoint: a model_final.pth may be left from an earlier run."""
    names = [name for name in dict.fromkeys([named_checkpoint(folder), "model_final.pth"]) if name]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds no checkpoint ({' or '.join(names)}): let the training finish, or lower "
        "SOLVER.CHECKPOINT_PERIOD"
    )


def _history(file: Path) -> list[dict]:
    """Read the numbers in the lines of metrics.json; of its last line only if it is complete.

    Runs append to it; iterations that were trained again replace the earlier ones.

    Raises:
        ValueError: a line is not an object with a whole number as its "iteration".
    """
    history: list[dict] = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            iteration = line["iteration"]
            if type(iteration) is not int or not 0 <= iteration < LONGEST_RUN:
                raise ValueError(f"its iteration is {iteration!r}")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if number == len(lines):  # the line that was being written when the run was killed
                break
            raise ValueError(
                f"{file}: line {number} is damaged ({type(error).__name__}: {one_line(error)}); "
                "expected a JSON object with the number of an iteration. Remove the line"
            ) from None
        while history and history[-1]["iteration"] >= iteration:
            history.pop()
        history.append({key: value for key, value in line.items() if _is_number(value)})
    return history


def _is_number(value) -> bool:
    # JSON has whole numbers of any size, which no float can hold.
    return type(value) is float or type(value) is int and abs(value) <= sys.float_info.max


def _command(log: Path) -> tuple[str, str]:
    """Find the config file and the command line of the last training in log.txt."""
    text = log.read_bytes().decode(errors="replace") if log.is_file() else ""
    pattern = re.compile(r"Command line arguments: Namespace\((.*)\)$", re.MULTILINE)
    for arguments in reversed(pattern.findall(text)):
        with suppress(KeyError, TypeError, ValueError):
            args = _keywords(arguments)
            if not args["eval_only"]:
                words = ["d2-deformable", "train", "--config-file", args["config_file"]]
                words += ["--num-gpus", str(args["num_gpus"])] if args["num_gpus"] != 1 else []
                words += ["--resume"] if args["resume"] else []
                words += args["opts"]
                if all(isinstance(word, str) for word in words):
                    return args["config_file"], shlex.join(words)
    return "", ""


def _keywords(arguments: str) -> dict:
    """The values of "name=value, ...".

    Raises:
        ValueError: this is something else.
    """
    if len(arguments) > LONGEST_COMMAND:
        raise ValueError("too long")
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (AttributeError, MemoryError, RecursionError, SyntaxError) as error:
        raise ValueError("not a list of keyword arguments") from error
