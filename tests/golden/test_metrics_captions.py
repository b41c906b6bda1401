"""CIDEr-D, BLEU, ROUGE-L and the tokens under them against pycocoevalcap."""

from __future__ import annotations

import re

import pytest

from mmmoe.evaluation.metrics.caption import bleu
from mmmoe.evaluation.metrics.metric import Item, grouped, total
from mmmoe.evaluation.metrics.ngrams import bleu_counts, cider, rouge
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.metrics.treebank import tokens

ENDS_IN_A_LETTER = re.compile(r"(?<!\w)[A-Za-z]\.\s*$")
"""Whether such a caption's period is its own token depends, in the original, on the next caption of its file."""


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
    for line in lines:
        texts = [line["prediction"], *line["references"]]
        for text, want in zip(texts, [line["prediction_tokens"], *line["reference_tokens"]], strict=True):
            if not ENDS_IN_A_LETTER.search(text):
                assert tokens(text) == want, text


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
    # Through document frequencies the last words of other items' references matter, a little.
    is_exact = not any(ENDS_IN_A_LETTER.search(text) for line in lines for text in line["references"])
    told = [
        (verdict.score, line["cider"])
        for verdict, line in zip(verdicts, lines, strict=True)
        if not any(ENDS_IN_A_LETTER.search(text) for text in (line["prediction"], *line["references"]))
    ]
    assert len(told) > 0.8 * len(lines)
    assert [score for score, _ in told] == pytest.approx([want for _, want in told], abs=1e-6 if is_exact else 0.05)
    headline = float(metric.headline(total(metric.counts(items, verdicts))))
    assert headline == pytest.approx(sum(verdict.score for verdict in verdicts) / len(lines))
