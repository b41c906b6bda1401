"""Intervals, paired comparisons and guessing baselines against closed forms and literal loops."""

import numpy as np
import pytest

from mmmoe.evaluation.guessing import chance, majority
from mmmoe.evaluation.metrics.metric import Counts, Item, MeanMetric, Verdict, total
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.statistics import bootstrap, paired


def counted(name, scores, categories=None, groups=None):
    """Returns counts of a mean metric from scores alone."""
    items = [
        Item(str(n), ("x",), category=categories[n] if categories else "", group=groups[n] if groups else "")
        for n in range(len(scores))
    ]
    return METRICS[name].counts(items, [Verdict(float(score), "x") for score in scores])


def interval(outcomes, resamples):
    return bootstrap(counted("exact", outcomes), METRICS["exact"], resamples)


def test_interval_equals_a_literal_bootstrap():
    outcomes = np.arange(200) < 140
    generator = np.random.default_rng(5)
    means = [generator.choice(outcomes, len(outcomes)).mean() for _ in range(20_000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert np.allclose(interval(outcomes.tolist(), 20_000), expected, atol=0.006)
    # and its width is that of the normal approximation
    assert np.allclose(np.diff(expected), 2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rtol=0.05)


def test_interval_is_repeatable_and_never_claims_certainty():
    outcomes = [True, False, True]
    assert interval(outcomes, 1000) == interval(outcomes, 1000)
    low, high = interval([True] * 30, 1000)
    assert (low, high) == (pytest.approx(0.8843, abs=1e-4), 1.0)  # Clopper-Pearson, 30 of 30
    assert interval([False] * 30, 1000) == (0.0, pytest.approx(1 - low))


def test_guessing_baselines():
    questions = [
        Question("1", "q", "a", choices=("a", "b")),
        Question("2", "q", "a", choices=("a", "b", "c", "d")),
        Question("3", "q", "A.", choices=("A.", "b")),
        Question("4", "q", "b", choices=("a", "b")),
    ]
    assert chance(questions) == pytest.approx((0.5 + 0.25 + 0.5 + 0.5) / 4)
    assert majority(questions) == 0.75
    free = [Question(str(i), "q", answer) for i, answer in enumerate(["x", "X", "y", "z"])]
    assert chance(free) == pytest.approx(1 / 3)
    assert majority(free) == 0.5


def test_bootstrap_resamples_groups_and_not_questions():
    # Ten images, on each ten questions that are all right or all wrong: no more is known than ten images tell.
    scores = np.repeat(np.arange(10) < 6, 10)
    groups = [f"image {n // 10}" for n in range(100)]
    low, high = bootstrap(counted("exact", scores, groups=groups), METRICS["exact"], 20_000, seed=1)
    generator = np.random.default_rng(3)
    means = [generator.choice(np.arange(10) < 6, 10).mean() for _ in range(20_000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-9)
    alone = bootstrap(counted("exact", scores), METRICS["exact"], 20_000, seed=1)
    assert high - low > 2 * (alone[1] - alone[0])


def test_bootstrap_of_unequal_groups_equals_a_literal_loop():
    generator = np.random.default_rng(0)
    groups = [f"g{n}" for n in generator.integers(0, 12, 60)]
    scores = generator.random(60)
    counts = counted("exact", scores, groups=groups)
    means = []
    for _ in range(4000):
        drawn = generator.choice(len(counts.groups), len(counts.groups))
        means.append(counts.columns["score"][drawn].sum() / counts.columns["n"][drawn].sum())
    assert bootstrap(counts, METRICS["exact"], 4000) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)


def test_bounds_are_exact_where_all_are_right_in_every_category():
    counts = counted("exact", [1] * 30, categories=["a", "b", "c"] * 10)
    assert bootstrap(counts, METRICS["exact"], 1000) == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    assert bootstrap(counted("exact", [0] * 30), METRICS["exact"], 1000) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))


def test_nothing_answered_is_said():
    with pytest.raises(ValueError, match="nothing was answered"):
        bootstrap(Counts({"score": np.zeros(0), "n": np.zeros(0)}, ()), METRICS["exact"], 100)


def test_paired_equals_a_literal_loop():
    generator = np.random.default_rng(7)
    a, b = generator.random(200) < 0.7, generator.random(200) < 0.6
    found = paired(counted("exact", a), counted("exact", b), METRICS["exact"], 20_000)
    differences = a.astype(float) - b
    means = [generator.choice(differences, 200).mean() for _ in range(20_000)]
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)
    tail = min((np.array(means) <= 0).mean(), (np.array(means) >= 0).mean())
    assert found.p == pytest.approx(2 * tail, abs=0.01)
    assert (found.discordant, found.groups) == (int((a != b).sum()), 200)


def test_paired_is_narrower_than_two_runs_apart():
    a = [1] * 100 + [0] * 100
    b = [1] * 95 + [0] * 105
    found = paired(counted("exact", a), counted("exact", b), METRICS["exact"], 5000)
    assert found.high - found.low < 0.05
    assert found.discordant == 5
    assert found.p < 0.05


def test_paired_with_itself_is_no_difference():
    counts = counted("exact", [1, 0, 1])
    found = paired(counts, counts, METRICS["exact"], 1000)
    assert (found.difference, found.low, found.high, found.p, found.discordant) == (0.0, 0.0, 0.0, 1.0, 0)


def test_paired_puts_groups_in_order():
    a = counted("exact", [1, 0, 1, 1])
    order = np.array([2, 0, 3, 1])
    b = Counts({name: values[order] for name, values in a.columns.items()}, tuple(a.groups[at] for at in order))
    assert paired(a, b, METRICS["exact"], 200).discordant == 0


def test_paired_says_which_questions_differ():
    with pytest.raises(ValueError, match=r"2 are in one only, the first \['2', '3'\]"):
        paired(counted("exact", [1, 0]), counted("exact", [1, 0, 1, 1]), METRICS["exact"], 100)
    with pytest.raises(ValueError, match="same metric and categories"):
        paired(counted("exact", [1, 0]), counted("exact", [1, 0], categories=["a", "b"]), METRICS["exact"], 100)


def test_a_million_questions_are_resampled_in_moments():
    counts = counted("exact", np.arange(1_000) % 2)
    many = Counts(
        {name: np.tile(values, 1000) for name, values in counts.columns.items()}, tuple(map(str, range(10**6)))
    )
    low, high = bootstrap(many, METRICS["exact"], 1000)
    assert (low, high) == pytest.approx((0.499, 0.501), abs=2e-4)
    assert float(METRICS["exact"].headline(total(many))) == 0.5


def test_mean_of_scores_that_are_no_shares_has_no_certain_end():
    metric = MeanMetric("points", lambda prediction, item: Verdict(1.0, prediction), scale=1.0, is_share=False)
    items = [Item(str(n), ("x",)) for n in range(9)]
    counts = metric.counts(items, metric.judge(["x"] * 9, items))
    assert bootstrap(counts, metric, 200) == (1.0, 1.0)
