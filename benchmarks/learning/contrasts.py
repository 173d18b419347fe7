"""Paired differences between arms: means, intervals and tests."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .endpoints import value
from .records import unpack

CONFIDENCE = 0.95
MARGIN = 1.0  # points; an interval within this margin counts as no difference
DRAWS = 2000  # bootstrap draws


@dataclass(frozen=True)
class Contrast:
    """The gain of arm `a` over arm `b` of a task, in points of `metric`.

    differences: one for each repetition.
    interval: Student's t interval over repetitions; None with a single repetition.
    bootstrap: percentile interval over draws of repetitions and test images.
    p: p-value of the two-sided paired t test, corrected by `holm`; None with a single repetition.
    """

    task: str
    metric: str
    a: str
    b: str
    differences: tuple[float, ...]
    interval: tuple[float, float] | None
    bootstrap: tuple[float, float]
    p: float | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def verdict(self) -> str:
        if self.interval is None:
            return "one repetition"
        low, high = self.interval
        if max(-low, high) <= MARGIN:
            return "no difference"
        if self.p < 1 - CONFIDENCE:
            return "gain" if self.mean > 0 else "loss"
        return "undecided"


def contrast(records, task: str, metric: str, a: str, b: str) -> Contrast | None:
    """Compare two arms over all repetitions that have both from the same start; None if none do."""
    by_repetition = {}
    for record in records:
        if record["task"] == task and record["arm"] in (a, b):
            key = record["start_sha256"], record["branch"]
            by_repetition.setdefault(key, {})[record["arm"]] = unpack(record["counts"])
    pairs = [(found[a], found[b]) for found in by_repetition.values() if len(found) == 2]
    if not pairs:
        return None
    differences = [_difference(metric, *pair) for pair in pairs]
    interval = p = None
    if len(pairs) > 1:
        test = stats.ttest_1samp(differences, 0.0)
        interval = tuple(map(float, test.confidence_interval(CONFIDENCE)))
        p = float(np.nan_to_num(test.pvalue, nan=1.0))  # NaN: all differences are 0
    bootstrap = bootstrapped(metric, pairs)
    return Contrast(task, metric, a, b, tuple(differences), interval, bootstrap, p)


def _difference(metric, a, b, weights=None) -> float:
    return value(metric, a, weights) - value(metric, b, weights)


def bootstrapped(metric: str, pairs, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Bootstrap the percentile interval of the mean difference.

    Repetitions and images are drawn with replacement, independently; both arms of every repetition
    see the same images.

    Args:
        pairs: for each repetition, the counts of both arms, see `endpoints.value`.
    """
    rng = np.random.default_rng(seed)
    images = len(next(iter(pairs[0][0].values())))
    means = []
    for _ in range(draws):
        weights = rng.multinomial(images, np.full(images, 1 / images))
        drawn = rng.integers(len(pairs), size=len(pairs))
        of_pair = {k: _difference(metric, *pairs[k], weights) for k in set(drawn.tolist())}
        means.append(np.mean([of_pair[k] for k in drawn.tolist()]))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def holm(contrasts: list[Contrast]) -> list[Contrast]:
    """Correct the p-values of the contrasts of one task for their number (Holm 1979)."""
    tested = sorted((c for c in contrasts if c.p is not None), key=lambda c: c.p)
    corrected, least = {}, 0.0
    for rank, c in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * c.p))
        corrected[c] = replace(c, p=least)
    return [corrected.get(c, c) for c in contrasts]
