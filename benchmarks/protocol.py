"""How implementations are compared: interleaved rounds, and ratios within a round.

Times of two runs on a shared machine do not compare; those of one round do. So every round draws
fresh inputs and runs all implementations on them in rotated order, and what is reported is the
median over rounds of the ratio within a round. A guard times a product of matrices around every
round: where that is slow, others are using the machine, and the round is drawn again.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

QUIET = 0.85  # of the guard's best speed
PATIENCE = 2  # discarded rounds per wanted one, then rounds are kept whatever the guard says


@dataclass
class Rounds:
    """Milliseconds of each implementation, in the same order of rounds."""

    ms: dict[str, list[float]]
    discarded: int = 0  # rounds drawn again, the machine being busy
    busy: int = 0  # rounds kept although it was

    def __len__(self) -> int:
        return len(next(iter(self.ms.values())))

    def summary(self, base: str) -> dict:
        """Every round, and quartiles of the ratios to `base` within a round."""
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
    """[lower quartile, median, upper quartile]."""
    if len(values) == 1:
        values = values * 2
    return [digits(q) for q in statistics.quantiles(values, n=4, method="inclusive")]


def digits(value: float) -> float:
    """Four significant ones."""
    return float(f"{value:.4g}")


class Guard:
    """Notices other work on the machine by a product of matrices slower than its best."""

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
    """Take `rounds` rounds.

    Args:
        runs: of fresh inputs give seconds.
        draw: gives fresh inputs.
        guard: None keeps every round.
        earlier: rounds of the same implementations, to be added to.
        deadline: of time.monotonic(); rounds that would end later are left out, but for one.
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
