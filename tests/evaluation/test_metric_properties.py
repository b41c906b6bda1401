"""What holds of every metric: no answer stops it, order is nothing to it, and all weights one is the score itself."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmoe.evaluation.metrics.metric import Item, total
from mmmoe.evaluation.metrics.mme import COGNITION, PERCEPTION
from mmmoe.evaluation.metrics.ocrbench import FORMULA
from mmmoe.evaluation.metrics.registry import METRICS, metric_of
from mmmoe.evaluation.statistics import bootstrap

PAGES = Path(__file__).resolve().parents[2] / "configs/benchmarks"
SAID = ("yes", "No.", "A", "B. a dog", "two dogs", "cat", "3.1", "50%", "10 10 50 50", "", "Answer is C", "a cat.")
CHOICES = ("a cat", "a dog", "two dogs", "none")
YES_OR_NO = {"pope", "mme", "mme_mova"}
LETTERED = {"choice", "options", "mmbench", "scienceqa", "letters"}


def items_of(name, count=24):
    """Returns items that a metric accepts, with categories and groups."""
    found = []
    for n in range(count):
        answers, choices, category, group = ("two dogs", "cat", "3"), (), f"kind {n % 3}", ""
        if name in YES_OR_NO:
            answers, group = (("Yes", "No")[n % 2],), f"image {n // 2}"
            category = (*PERCEPTION, *COGNITION)[n // 2 % 3] if name != "pope" else f"split {n % 3}"
        elif name in LETTERED:
            choices = CHOICES[n % 4 :] + CHOICES[: n % 4]
            answers, group = ("a dog",), f"question {n // 4}" if name == "mmbench" else ""
        elif name == "tiny_lvlm":
            category = f"ability {n % 2}/set {n % 4}"
        elif name == "location":
            answers = ("10 10 60 50",)
        elif name == "ocrbench":
            category = (FORMULA, "Regular Text Recognition")[n % 2]
        found.append(Item(str(n), answers, choices, category, group))
    return found


def scored(name, predictions, items):
    metric = METRICS[name]
    counts = metric.counts(items, metric.judge(predictions, items))
    sums = total(counts)
    measures = {key: float(value) for key, value in metric.measures(sums).items()}
    return counts, float(metric.headline(sums)), measures


def said(count=24):
    return [SAID[n % len(SAID)] for n in range(count)]


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60) | st.sampled_from(SAID), min_size=24, max_size=24))
def test_no_answer_stops_a_metric(name, predictions):
    items, metric = items_of(name), METRICS[name]
    verdicts = metric.judge(predictions, items)
    assert len(verdicts) == len(items)
    top = 10.0 if name == "caption" else 1.0
    assert all(0.0 <= verdict.score <= top + 1e-9 for verdict in verdicts)
    sums = total(metric.counts(items, verdicts))
    headline = float(metric.headline(sums))
    assert not math.isnan(headline)
    assert headline >= 0.0
    if metric.is_share:
        assert headline <= 1.0
    assert all(float(value) >= 0.0 for value in metric.measures(sums).values())


@pytest.mark.parametrize("name", METRICS)
def test_order_is_nothing_to_a_metric(name):
    items, predictions = items_of(name), said()
    _, headline, measures = scored(name, predictions, items)
    order = np.random.default_rng(4).permutation(len(items))
    _, other, mixed = scored(name, [predictions[at] for at in order], [items[at] for at in order])
    assert other == pytest.approx(headline, abs=1e-9)
    assert mixed == pytest.approx(measures, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_weights_of_one_give_the_score_itself(name):
    counts, headline, measures = scored(name, said(), items_of(name))
    metric = METRICS[name]
    weights = np.stack([np.ones(len(counts.groups)), np.full(len(counts.groups), 2.0)])
    sums = {column: weights @ values for column, values in counts.columns.items()}
    assert metric.headline(sums)[0] == pytest.approx(headline, abs=1e-9)
    assert {key: value[0] for key, value in metric.measures(sums).items()} == pytest.approx(measures, abs=1e-9)
    assert metric.headline(sums)[1] == pytest.approx(headline, abs=1e-6), "the set twice over scores as once"


@pytest.mark.parametrize("name", METRICS)
def test_the_interval_holds_the_score(name):
    counts, headline, _ = scored(name, said(), items_of(name))
    low, high = bootstrap(counts, METRICS[name], 400)
    assert low <= headline + 1e-9
    assert high >= headline - 1e-9
    assert (low, high) == bootstrap(counts, METRICS[name], 400)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_bears_its_name(name):
    assert metric_of(name).name == name
    assert METRICS[name].scale in (1.0, 100.0)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="there is no metric 'bleurt'; one of exact"):
        metric_of("bleurt")


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_its_line_and_its_page(name):
    told = (PAGES / "README.md").read_text().split("## Metrics")[1]
    (line,) = [line for line in told.splitlines() if line.startswith(f"| `{name}` |")]
    page = re.search(r"\((metrics/\w+\.md)\)", line)
    title = (PAGES / page.group(1)).read_text().splitlines()[0]
    assert name in title.removeprefix("# ").split(", ")
