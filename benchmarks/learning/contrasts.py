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

    twin: a task on a twin of the test images, "" if there is none. Its gain is subtracted.
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
    twin: str = ""

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


def contrast(records, task: str, metric: str, a: str, b: str, twin: str = "") -> Contrast | None:
    """Compare two arms over all repetitions that have both from the same start; None if none do.

    Args:
        twin: see `Contrast`.
    """
    signs = {(task, a): 1, (task, b): -1}
    signs |= {(twin, a): -1, (twin, b): 1} if twin else {}
    by_repetition = {}
    for record in records:
        arm = record["task"], record["arm"]
        if arm in signs:
            repetition = by_repetition.setdefault((record["start_sha256"], record["branch"]), {})
            repetition[arm] = signs[arm], unpack(record["counts"])
    terms = [list(some.values()) for some in by_repetition.values() if len(some) == len(signs)]
    if not terms:
        return None
    differences = [_difference(metric, some) for some in terms]
    interval = p = None
    if len(terms) > 1:
        test = stats.ttest_1samp(differences, 0.0)
        interval = tuple(map(float, test.confidence_interval(CONFIDENCE)))
        p = float(np.nan_to_num(test.pvalue, nan=1.0))  # NaN: all differences are 0
    bootstrap = bootstrapped(metric, terms)
    return Contrast(task, metric, a, b, tuple(differences), interval, bootstrap, p, twin)


def _difference(metric, terms, weights=None) -> float:
    return sum(sign * value(metric, counts, weights) for sign, counts in terms)


def bootstrapped(metric: str, terms, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Bootstrap the percentile interval of the mean difference.

    Repetitions and images are drawn with replacement, independently; all arms of every repetition
    see the same images.

    Args:
        terms: for each repetition, [(sign, counts of an arm), ...], see `endpoints.value`.
    """
    rng = np.random.default_rng(seed)
    images = len(next(iter(terms[0][0][1].values())))
    means = []
    for _ in range(draws):
        weights = rng.multinomial(images, np.full(images, 1 / images))
        drawn = rng.integers(len(terms), size=len(terms)).tolist()
        differences = {k: _difference(metric, terms[k], weights) for k in set(drawn)}
        means.append(np.mean([differences[k] for k in drawn]))
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
