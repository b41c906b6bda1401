"""Free answers against the official scorers: VQA accuracy, ANLS, relaxed accuracy, GQA, OCRBench, containment."""

from __future__ import annotations

import pytest

from mmmoe.evaluation.metrics.metric import Item, total
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.metrics.vqa import plainly_spelled, spelled


def judged(name, lines, category=lambda line: ""):
    """Returns each line's score by a metric, and the headline."""
    metric = METRICS[name]
    items = [Item(str(n), tuple(line["references"]), category=category(line)) for n, line in enumerate(lines)]
    verdicts = metric.judge([line["prediction"] for line in lines], items)
    sums = total(metric.counts(items, verdicts))
    return [verdict.score for verdict in verdicts], float(metric.headline(sums)), metric.measures(sums)


def check(case, lines, metric, field, aggregate=None, tolerance=1e-9):
    """Asserts that a metric gives what a field of every line says, and the recorded mean; null says nothing."""
    scores, headline, _ = judged(metric, lines)
    told = [(score, line[field]) for score, line in zip(scores, lines, strict=True) if line[field] is not None]
    assert [score for score, _ in told] == pytest.approx([float(want) for _, want in told], abs=tolerance)
    mean = headline if len(told) == len(lines) else sum(score for score, _ in told) / len(told)
    assert mean == pytest.approx(case.meta["aggregate"][aggregate or field], abs=tolerance)


@pytest.mark.golden("metrics/answer_normalisation")
def test_spellings(case, lines):
    for line in lines:
        assert spelled(line["text"]) == line["llava_m4c_full"] == line["lmms_eval_full"]
        assert plainly_spelled(line["text"]) == line["lmms_eval_punctuation_then_articles"]


@pytest.mark.golden("metrics/vqa_accuracy")
@pytest.mark.parametrize(("metric", "field"), [("vqa", "llava_textvqa"), ("vqa_v2", "lmms_eval_vqav2")])
def test_vqa_accuracy(case, lines, metric, field):
    check(case, lines, metric, field)


@pytest.mark.golden("metrics/vqa_accuracy")
def test_vqa_answers_as_understood(case, lines):
    items = [Item(str(n), tuple(line["references"])) for n, line in enumerate(lines)]
    verdicts = METRICS["vqa_v2"].judge([line["prediction"] for line in lines], items)
    assert [verdict.parsed or "" for verdict in verdicts] == [line["lmms_eval_processed"] for line in lines]


@pytest.mark.golden("metrics/anls")
@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("anls", "llava_stvqa"),
        ("anls_docvqa", "lmms_eval"),
        ("anls_docvqa", "vlmevalkit"),
        ("anls_text_harmony", "textharmony"),
    ],
)
def test_anls(case, lines, metric, field):
    check(case, lines, metric, field)


@pytest.mark.golden("metrics/chartqa_relaxed_accuracy")
def test_relaxed_accuracy(case, lines):
    check(case, lines, "relaxed", "lmms_eval")
    stripped = [line | {"prediction": line["prediction"].strip()} for line in lines]
    check(case, stripped, "relaxed", "vlmevalkit")


@pytest.mark.golden("metrics/gqa_exact_match")
def test_gqa_as_lmms_eval_compares(case, lines):
    check(case, lines, "gqa_loose", "lmms_eval")


@pytest.mark.golden("metrics/textharmony_containment")
def test_contained(case, lines):
    check(case, lines, "contained", "textharmony")


@pytest.mark.golden("metrics/ocrbench")
def test_ocrbench(case, lines):
    scores, headline, measures = judged("ocrbench", lines, lambda line: line["question_type"])
    assert scores == [line["vlmevalkit"] for line in lines]
    assert sum(scores) == case.meta["aggregate"]["vlmevalkit_sum"]
    assert headline == pytest.approx(sum(scores) / len(lines))
    for kind, value in measures.items():
        own = [line["vlmevalkit"] for line in lines if line["question_type"] == kind]
        assert float(value) == pytest.approx(sum(own) / len(own))
