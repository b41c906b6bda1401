"""How sure a score is: intervals by resampling, and two runs on the same questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmmoe.evaluation.metrics.metric import Array, Counts, Metric, Sums, total

TAIL = 0.025
"""Beyond each end of a 95 % interval."""
AT_ONCE = 4_000_000
"""Weights that are drawn together."""
SHOWN = 5
Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same questions; positive means that the first is better."""

    difference: float
    low: float
    high: float
    """95 % interval of the difference."""
    p: float
    """Two-sided: twice the share of resamples in which the difference is 0 or has the other sign, at most 1."""
    discordant: int
    """Groups on which the two differ."""
    groups: int


def bootstrap(counts: Counts, metric: Metric, resamples: int, seed: int = 0) -> Interval:
    """Returns the 95 % percentile-bootstrap interval of a headline: groups are drawn anew with replacement.

    Where every resample has the same score at an end of a share, the bootstrap would claim certainty; there the exact
    (Clopper-Pearson) bound of as many groups all right or all wrong is returned: 0.025^(1/n) from the certain end.
    Resamples that lack a part of the score are left out.
    """
    drawn = np.concatenate([metric.headline(sums) for sums in _resampled(counts, resamples, seed)])
    return _interval(drawn, float(metric.headline(total(counts))), metric.is_share, len(counts.groups))


def paired(a: Counts, b: Counts, metric: Metric, resamples: int, seed: int = 0) -> Comparison:
    """Returns how two runs compare when both are scored on the same resampled groups.

    Raises:
        ValueError: The runs have other groups or count other things.
    """
    b = _in_order(b, a)
    both = Counts(
        {f"a {name}": values for name, values in a.columns.items()}
        | {f"b {name}": values for name, values in b.columns.items()},
        a.groups,
    )

    def difference(sums: Sums) -> Array:
        halves = ({name[2:]: value for name, value in sums.items() if name[0] == half} for half in "ab")
        first, second = (metric.headline(half) for half in halves)
        return np.asarray(first - second)

    drawn = np.concatenate([difference(sums) for sums in _resampled(both, resamples, seed)])
    drawn = drawn[~np.isnan(drawn)]
    observed = float(difference(total(both)))
    low, high = _interval(drawn, observed, False, len(a.groups))
    tail = (1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))) / (1 + len(drawn))
    differ = np.any([a.columns[name] != b.columns[name] for name in a.columns], axis=0)
    return Comparison(observed, low, high, min(1.0, 2.0 * tail), int(differ.sum()), len(a.groups))


def _resampled(counts: Counts, resamples: int, seed: int) -> Iterator[dict[str, Array]]:
    """Yields the sums of resampled groups, some resamples at a time.

    Groups that count alike are drawn as one: how often any of them comes is binomial, which for right or wrong answers
    leaves two numbers to draw however many questions there are.
    """
    if not counts.groups:
        raise ValueError("nothing was answered, so there is nothing to resample")
    names = list(counts.columns)
    rows: Array = np.stack([counts.columns[name] for name in names], axis=1)
    kinds, times = np.unique(rows, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    size = max(1, AT_ONCE // len(kinds))
    for start in range(0, resamples, size):
        many = min(size, resamples - start)
        weights: npt.NDArray[np.int64] = generator.multinomial(len(rows), times / len(rows), size=many)
        sums = weights @ kinds
        yield {name: sums[:, place] for place, name in enumerate(names)}


def _interval(drawn: Array, observed: float, is_share: bool, groups: int) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = (float(end) for end in np.quantile(drawn, [TAIL, 1.0 - TAIL]))
    if is_share and np.isclose(drawn, observed).all():
        bound = TAIL ** (1.0 / groups)
        if np.isclose(observed, 0.0):
            return 0.0, 1.0 - bound
        if np.isclose(observed, 1.0):
            return bound, 1.0
    return low, high


def _in_order(counts: Counts, like: Counts) -> Counts:
    """Returns counts with their groups in another's order."""
    if missing := sorted({*like.groups} ^ {*counts.groups}):
        raise ValueError(
            f"the runs did not answer the same questions: {len(missing)} are in one only, the first {missing[:SHOWN]}"
        )
    if other := sorted({*like.columns} ^ {*counts.columns}):
        raise ValueError(
            f"the runs count other things, {other[:SHOWN]}; score both with the same metric and categories"
        )
    place = {group: at for at, group in enumerate(counts.groups)}
    order = np.array([place[group] for group in like.groups])
    return Counts({name: values[order] for name, values in counts.columns.items()}, like.groups)
