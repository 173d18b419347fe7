"""How implementations are compared: interleaved rounds, and ratios within a round.

Times of two runs on a shared machine do not compare; those of one round do. So every round draws
fresh inputs and runs all implementations on them in rotated order, and what is reported is the
median over rounds of the ratio within a round. A guard times a product of matrices around every
round: where that is slow, others are using the machine, and the round is drawn again.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

QUIET = 0.85  # of the guard's best speed
PATIENCE = 2  # discarded rounds per wanted one, then rounds are kept whatever the guard says


@dataclass
class Rounds:
    """What was taken of each implementation, in the same order of rounds."""

    seconds: dict[str, list[float]]
    discarded: int = 0  # rounds drawn again, the machine being busy
    busy: int = 0  # rounds kept although it was

    def summary(self, base: str) -> dict:
        """Quartiles of milliseconds, and of the ratios to `base` within a round."""
        return {
            "rounds": len(self.seconds[base]),
            "discarded": self.discarded,
            "busy": self.busy,
            "base": base,
            "ms": {n: quartiles([1e3 * s for s in taken]) for n, taken in self.seconds.items()},
            "ratio": {n: self.ratio(n, base) for n in self.seconds if n != base},
            "ours_to": {n: self.ratio("ours", n) for n in self.seconds if n != "ours"},
            "times_faster": {n: self.ratio(n, "ours") for n in self.seconds if n != "ours"},
        }

    def ratio(self, name: str, base: str) -> list[float]:
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return quartiles([a / b for a, b in pairs])


def quartiles(values) -> list[float]:
    """[lower quartile, median, upper quartile], four significant digits."""
    if len(values) == 1:
        values = values * 2
    return [float(f"{q:.4g}") for q in statistics.quantiles(values, n=4, method="inclusive")]


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
    runs: dict[str, Callable], draw: Callable, rounds: int, guard: Guard | None
) -> Rounds:
    """Take `rounds` rounds.

    Args:
        runs: of fresh inputs give seconds.
        draw: gives fresh inputs.
        guard: None keeps every round.
    """
    names = list(runs)
    result = Rounds({name: [] for name in names})
    quiet_before = guard is None or guard.is_quiet()
    turn = 0
    while len(result.seconds[names[0]]) < rounds:
        inputs = draw()
        first = turn % len(names)
        taken = {name: runs[name](inputs) for name in names[first:] + names[:first]}
        turn += 1
        quiet_after = guard is None or guard.is_quiet()
        quiet, quiet_before = quiet_before and quiet_after, quiet_after
        if not quiet and result.discarded < PATIENCE * rounds:
            result.discarded += 1
            continue
        result.busy += not quiet
        for name, seconds in taken.items():
            result.seconds[name].append(seconds)
    return result
