"""Yes or no and letters against the official scorers: POPE, MME, MMBench's extraction, ScienceQA."""

from __future__ import annotations

import pytest

from mmmoe.evaluation.metrics.metric import Item, total
from mmmoe.evaluation.metrics.mme import COGNITION, PERCEPTION, mova, official
from mmmoe.evaluation.metrics.options import LETTERS, mmbench_letter, science_letter
from mmmoe.evaluation.metrics.registry import METRICS


def measured(name, predictions, items):
    metric = METRICS[name]
    verdicts = metric.judge(predictions, items)
    sums = total(metric.counts(items, verdicts))
    found = {key: float(value) for key, value in metric.measures(sums).items()}
    return verdicts, float(metric.headline(sums)), found


def pope_items(lines):
    return [Item(str(n), (line["label"],)) for n, line in enumerate(lines)]


@pytest.mark.golden("metrics/pope")
def test_pope_as_llava(case, lines):
    verdicts, headline, found = measured("pope", [line["prediction"] for line in lines], pope_items(lines))
    assert [verdict.parsed for verdict in verdicts] == [line["llava_parsed"] for line in lines]
    want = dict(case.meta["aggregate"]["llava"])
    counts = want.pop("TP_FP_TN_FN")
    assert headline == pytest.approx(want["f1_score"], abs=1e-9)
    named = {"f1_score": "f1", "yes_ratio": "yes ratio"}
    assert {key: found[named.get(key, key)] for key in want} == pytest.approx(want, abs=1e-9)
    sums = total(METRICS["pope"].counts(pope_items(lines), verdicts))
    assert [float(sums[cell]) for cell in ("tp", "fp", "tn", "fn")] == counts


@pytest.mark.golden("metrics/pope")
def test_pope_measures_of_another_parser(case, lines):
    """VLMEvalKit's F1, where what it does not understand is no yes, from the answers as it understood them."""
    said = [line["vlmevalkit_parsed"].replace("Unknown", "No") for line in lines]
    _, _, found = measured("pope", said, pope_items(lines))
    want = case.meta["aggregate"]["vlmevalkit_percent"]
    named = {"f1_score": "f1", "precision": "precision", "recall": "recall"}
    assert {key: 100 * found[name] for key, name in named.items()} == pytest.approx(
        {key: want[key] for key in named}, abs=1e-7
    )


def mme_items(lines):
    return [
        Item(str(n), (line["label"],), category=line["category"], group=line["question_id"])
        for n, line in enumerate(lines)
    ]


@pytest.mark.golden("metrics/mme")
def test_mme_answers_as_understood(case, lines):
    for line in lines:
        assert mova(line["prediction"]) == line["mova_parsed"]
        cleaned = line["prediction"].lower().strip().replace(".", "")
        if len(cleaned) != 1:  # lmms-eval reads a lone y or n as well
            assert official(cleaned) == line["lmms_eval_parsed"]


@pytest.mark.golden("metrics/mme")
def test_mme_sums(case, lines):
    """Points from the answers as lmms-eval understood them."""
    want = case.meta["aggregate"]
    _, headline, found = measured("mme", [line["lmms_eval_parsed"] for line in lines], mme_items(lines))
    assert found["perception"] == pytest.approx(want["mme_perception_score"], abs=1e-6)
    assert found["cognition"] == pytest.approx(want["mme_cognition_score"], abs=1e-6)
    assert headline == pytest.approx(found["perception"] + found["cognition"])
    assert {name: found[name] for name in want["lmms_eval_by_category"]} == pytest.approx(
        want["lmms_eval_by_category"], abs=1e-6
    )
    assert found["incomplete images"] == 0


@pytest.mark.golden("metrics/mme")
def test_mme_acc_and_acc_plus(case, lines):
    """From the answers as VLMEvalKit understood them, and with a perfect image for each sub-task that is not there."""
    want = case.meta["aggregate"]
    items, said = mme_items(lines), [line["vlmevalkit_parsed"] for line in lines]
    _, _, found = measured("mme", said, items)
    for name, both in want["vlmevalkit_by_category"].items():
        assert found[f"{name} acc"] == pytest.approx(both["acc"], abs=1e-6)
        assert found[f"{name} acc+"] == pytest.approx(both["acc_plus"], abs=1e-6)
    absent = [name for name in (*PERCEPTION, *COGNITION) if name not in want["vlmevalkit_by_category"]]
    more = [Item(f"{name} {right}", (right,), category=name, group="1") for name in absent for right in ("Yes", "No")]
    _, headline, found = measured("mme", said + [item.answers[0] for item in more], items + more)
    rating = dict(want["vlmevalkit_rating_with_perfect_absent_categories"])
    assert headline == pytest.approx(rating["perception"] + rating["reasoning"], abs=1e-6)
    assert found["cognition"] == pytest.approx(rating.pop("reasoning"), abs=1e-6)
    assert {name: found[name] for name in rating} == pytest.approx(rating, abs=1e-6)


@pytest.mark.golden("metrics/mme")
def test_mme_of_mova(case, lines):
    verdicts, _, _ = measured("mme_mova", [line["prediction"] for line in lines], mme_items(lines))
    assert [verdict.parsed for verdict in verdicts] == [line["mova_parsed"] for line in lines]
    assert [verdict.score for verdict in verdicts] == [
        float(line["mova_parsed"] == line["label"].lower()) for line in lines
    ]


@pytest.mark.golden("metrics/mmbench_option_extraction")
def test_mmbench_letters(case, lines):
    for line in lines:
        assert list(line["choices"]) == list(LETTERS[: len(line["choices"])])
        assert mmbench_letter(line["prediction"], list(line["choices"].values())) == line["vlmevalkit"], line
    items = [Item(str(n), ("A",), choices=tuple(line["choices"].values())) for n, line in enumerate(lines)]
    verdicts, headline, _ = measured("options", [line["prediction"] for line in lines], items)
    assert [verdict.parsed for verdict in verdicts] == [line["vlmevalkit"] for line in lines]
    assert headline == pytest.approx(sum(line["vlmevalkit"] == "A" for line in lines) / len(lines))


@pytest.mark.golden("metrics/scienceqa")
def test_scienceqa_as_llava(case, lines):
    choices = [tuple(f"option {n}" for n in range(line["choices"])) for line in lines]
    for line, texts in zip(lines, choices, strict=True):
        letter = science_letter(line["prediction"], texts)
        assert (letter or "FAILED") == line["llava_parsed"], line
        is_option = letter is not None and letter in LETTERS[: line["choices"]]
        assert (LETTERS.index(letter) if is_option else -1) == line["llava_index"], line
    items = [
        Item(str(n), (texts[line["label"]],), choices=texts)
        for n, (line, texts) in enumerate(zip(lines, choices, strict=True))
    ]
    verdicts, headline, _ = measured("scienceqa", [line["prediction"] for line in lines], items)
    assert [bool(verdict.score) for verdict in verdicts] == [line["llava_correct"] for line in lines]
    assert headline == pytest.approx(case.meta["aggregate"]["llava"])
