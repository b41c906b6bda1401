"""CIDEr-D, BLEU, ROUGE-L and the tokens under them against pycocoevalcap."""

from __future__ import annotations

import pytest

from mmmoe.evaluation.metrics.caption import bleu
from mmmoe.evaluation.metrics.metric import Item, grouped, total
from mmmoe.evaluation.metrics.ngrams import bleu_counts, cider, rouge
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.metrics.treebank import tokens


@pytest.mark.golden("metrics/caption_cider")
def test_cider(case, lines):
    scores = cider([line["prediction"] for line in lines], [line["references"] for line in lines])
    assert scores == pytest.approx([line["cider"] for line in lines], abs=1e-6)
    assert sum(scores) / len(scores) == pytest.approx(case.meta["aggregate"]["cider"], abs=1e-6)


@pytest.mark.golden("metrics/caption_cider")
def test_rouge(case, lines):
    scores = [rouge(line["prediction"], line["references"]) for line in lines]
    assert scores == pytest.approx([line["rouge_l"] for line in lines], abs=1e-6)
    assert sum(scores) / len(scores) == pytest.approx(case.meta["aggregate"]["rouge_l"], abs=1e-6)


@pytest.mark.golden("metrics/caption_cider")
def test_bleu(case, lines):
    counted = [bleu_counts(line["prediction"], line["references"]) for line in lines]
    for line, counts in zip(lines, counted, strict=True):
        assert [float(value) for value in bleu(counts).values()] == pytest.approx(line["bleu"], rel=1e-6, abs=1e-9)
    items = [Item(str(n), ()) for n in range(len(lines))]
    sums = total(grouped(items, {name: [counts[name] for counts in counted] for name in counted[0]}))
    assert [float(value) for value in bleu(sums).values()] == pytest.approx(case.meta["aggregate"]["bleu"], abs=1e-6)


@pytest.mark.golden("metrics/caption_cider_ptb")
def test_tokens(case, lines):
    assert tokens([line["prediction"] for line in lines]) == [line["prediction_tokens"] for line in lines]
    references = [text for line in lines for text in line["references"]]
    assert tokens(references) == [text for line in lines for text in line["reference_tokens"]]


@pytest.mark.golden("metrics/caption_cider_ptb")
def test_cider_of_tokens(case, lines):
    scores = cider([line["prediction_tokens"] for line in lines], [line["reference_tokens"] for line in lines])
    assert scores == pytest.approx([line["cider"] for line in lines], abs=1e-6)
    assert sum(scores) / len(scores) == pytest.approx(case.meta["aggregate"]["cider"], abs=1e-6)


@pytest.mark.golden("metrics/caption_cider_ptb")
def test_captions_as_written(case, lines):
    metric = METRICS["caption"]
    items = [Item(str(n), tuple(line["references"])) for n, line in enumerate(lines)]
    verdicts = metric.judge([line["prediction"] for line in lines], items)
    assert [verdict.score for verdict in verdicts] == pytest.approx([line["cider"] for line in lines], abs=1e-6)
    headline = float(metric.headline(total(metric.counts(items, verdicts))))
    assert headline == pytest.approx(case.meta["aggregate"]["cider"], abs=1e-6)
