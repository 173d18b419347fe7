"""The protocol of comparisons: interleaved rounds, and ratios within a round.

On a shared machine, times of different runs are not comparable, but times within one round are. So
every round draws fresh inputs and runs all implementations on them in rotated order. The result is
the median over rounds of the ratio within a round. A guard times a matrix multiply around every
round: if that is slow, other processes are using the machine, and the round is repeated.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

QUIET = 0.85  # of the guard's best speed
PATIENCE = 2  # discarded rounds per requested one; after these, busy rounds are kept


@dataclass
class Rounds:
    """Milliseconds of each implementation, in the same order of rounds."""

    ms: dict[str, list[float]]
    discarded: int = 0  # rounds repeated because the machine was busy
    busy: int = 0  # rounds kept although the machine was busy

    def __len__(self) -> int:
        return len(next(iter(self.ms.values())))

    def summary(self, base: str) -> dict:
        """Summarise all rounds, with quartiles of the ratios to `base` within a round."""
        return {
            "base": base,
            "discarded": self.discarded,
            "busy": self.busy,
            "ms": self.ms,
            "ratio": {name: self.ratio(name, base) for name in self.ms if name != base},
            "ours_to": {name: self.ratio("ours", name) for name in self.ms if name != "ours"},
            "times_faster": {name: self.ratio(name, "ours") for name in self.ms if name != "ours"},
        }

    def ratio(self, name: str, base: str) -> list[float]:
        pairs = zip(self.ms[name], self.ms[base], strict=True)
        return quartiles([a / b for a, b in pairs])


def quartiles(values) -> list[float]:
    """Compute [lower quartile, median, upper quartile]."""
    if len(values) == 1:
        values = values * 2
    return [digits(q) for q in statistics.quantiles(values, n=4, method="inclusive")]


def digits(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


class Guard:
    """Detects other load on the machine: a matrix multiply is slower than its best time."""

    def __init__(self, clock):
        self.clock = clock
        size = 4096 if clock.device.type == "cuda" else 768
        self.matrix = torch.randn(size, size, device=clock.device)
        self.best = min(self._seconds() for _ in range(10))

    def _seconds(self) -> float:
        return self.clock.seconds(lambda: self.matrix @ self.matrix)

    def is_quiet(self) -> bool:
        seconds = min(self._seconds() for _ in range(3))
        self.best = min(self.best, seconds)
        return self.best >= QUIET * seconds


def interleave(
    runs: dict[str, Callable],
    draw: Callable,
    rounds: int,
    guard: Guard | None = None,
    earlier: Rounds | None = None,
    deadline: float = math.inf,
) -> Rounds:
    """Measure until there are `rounds` rounds.

    Args:
        runs: functions that run an implementation on fresh inputs and return seconds.
        draw: returns fresh inputs.
        guard: None keeps every round.
        earlier: rounds of the same implementations to add to.
        deadline: time.monotonic() after which no round may end, except for the first one.
    """
    names = list(runs)
    result = earlier or Rounds({name: [] for name in names})
    quiet_before = guard is None or guard.is_quiet()
    turn = len(result)
    while len(result) < rounds:
        start = time.monotonic()
        inputs = draw()
        first = turn % len(names)
        taken = {name: runs[name](inputs) for name in names[first:] + names[:first]}
        turn += 1
        quiet_after = guard is None or guard.is_quiet()
        quiet, quiet_before = quiet_before and quiet_after, quiet_after
        if quiet or result.discarded >= PATIENCE * rounds:
            result.busy += not quiet
            for name, seconds in taken.items():
                result.ms[name].append(digits(1e3 * seconds))
        else:
            result.discarded += 1
        now = time.monotonic()
        if len(result) and now + (now - start) > deadline:
            break
    return result
