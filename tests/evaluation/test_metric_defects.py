"""Defects seen in evaluation kits (each test names one), which must not be found here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmmoe.evaluation.metrics.metric import Item, total
from mmmoe.evaluation.metrics.mme import COGNITION, PERCEPTION
from mmmoe.evaluation.metrics.registry import METRICS


def score(name, predictions, items):
    """Returns headline and measures."""
    metric = METRICS[name]
    sums = total(metric.counts(items, metric.judge(predictions, items)))
    return float(metric.headline(sums)), {key: float(value) for key, value in metric.measures(sums).items()}


def pope(labels):
    return [Item(str(n), (label,)) for n, label in enumerate(labels)]


def test_references_are_not_rewritten_in_place():
    """lmms-eval spells doc["answers"] anew, so a second pass over the data sees other answers."""
    answers = ["The Cat.\n", "a cat", "two,000", "Dont"] + ["cat"] * 6
    item = Item("1", tuple(answers))
    for name in ("vqa", "vqa_v2", "a_okvqa", "words", "anls", "relaxed", "exact"):
        first = METRICS[name].judge(["the cat"], [item])
        assert METRICS[name].judge(["the cat"], [item]) == first
    assert item.answers == tuple(answers)


def test_pope_yes_ratio_is_that_of_predictions():
    """lmms-eval takes it from the labels, so a model that always says no and one that always says yes both show 0.5."""
    items = pope(["yes", "no"] * 5)
    assert score("pope", ["no"] * 10, items)[1]["yes ratio"] == 0.0
    assert score("pope", ["yes"] * 10, items)[1]["yes ratio"] == 1.0


def test_pope_yes_with_a_period_is_right():
    """lmms-eval compares strings, so "Yes." is wrong."""
    headline, measures = score("pope", ["Yes.", "No."], pope(["yes", "no"]))
    assert headline == measures["accuracy"] == 1.0


def test_mme_with_a_limit_is_no_assertion():
    """lmms-eval stops with "MME only supports pairwise evaluation" at limit=3."""
    items = [
        Item(f"{image} {answer}", (answer,), category="count", group=image)
        for image in ("a.png", "b.png")
        for answer in ("Yes", "No")
    ][:3]
    headline, measures = score("mme", ["Yes", "No", "Yes"], items)
    assert measures["incomplete images"] == 1
    assert (measures["count acc"], measures["count acc+"], headline) == (100.0, 100.0, 200.0)
    assert score("mme", ["Yes"], items[:1])[1]["count acc+"] == 0.0


def test_mme_images_of_two_sub_tasks_may_share_a_name():
    items = [
        Item(f"{task} {answer}", (answer,), category=task, group="0001.jpg")
        for task in (*PERCEPTION, *COGNITION)
        for answer in ("Yes", "No")
    ]
    headline, measures = score("mme", [item.answers[0] for item in items], items)
    assert (headline, measures["perception"], measures["cognition"]) == (2800.0, 2000.0, 800.0)


def test_three_of_three_right_in_ocrbench_is_not_3_of_1000():
    """lmms-eval divides by 1000 always: 3 of 3 gives 0.003."""
    items = [Item(str(n), ("stop",), category="Regular Text Recognition") for n in range(3)]
    headline, measures = score("ocrbench", ["Stop sign"] * 3, items)
    assert headline == 1.0
    assert "of 1000" not in measures
    items = [replace(items[0], id=str(n)) for n in range(1000)]
    headline, measures = score("ocrbench", ["Stop"] * 250 + ["Go"] * 750, items)
    assert (headline, measures["of 1000"]) == (0.25, 250.0)


def test_ocrbench_keeps_nothing_between_calls():
    """lmms-eval adds to a table of its module, so a second run in one process has the first one's points as well."""
    items = [Item(str(n), ("stop",), category="Regular Text Recognition") for n in range(3)]
    assert score("ocrbench", ["stop", "go", "go"], items) == score("ocrbench", ["stop", "go", "go"], items)


def test_mmbench_never_guesses():
    """lmms-eval falls back to a random option, so an answer that says nothing may be right."""
    choices = ("a cat", "a dog", "a cow", "a hen")
    items = [Item(str(n), (choices[n % 4],), choices=choices) for n in range(400)]
    for said in ("", "I do not know", "A or B or C", "Sorry, I can't help with images of people yet."):
        assert score("mmbench", [said] * 400, items)[0] == 0.0
        assert score("options", [said] * 400, items)[0] == 0.0


def test_mmbench_right_by_luck_in_some_rotations_is_wrong():
    choices = ("a cat", "a dog", "a cow", "a hen")
    turns = [
        Item(f"{n}", ("a cat",), choices=choices[n:] + choices[:n], category="perception/animals", group="7")
        for n in range(4)
    ]
    always_a, measures = score("mmbench", ["A"] * 4, turns)
    assert (always_a, measures["each answer"], measures["incomplete"]) == (0.0, 0.25, 0.0)
    assert measures["perception"] == measures["perception/animals"] == 0.0
    assert score("mmbench", ["A", "D", "C", "B"], turns)[0] == 1.0
    assert score("mmbench", ["A", "D"], turns[:2])[1]["incomplete"] == 1.0


def test_anls_divides_by_the_length_of_what_it_compares():
    """DocVQA's script and both kits divide by the raw length, so blanks around a wrong answer make it better."""
    item = Item("1", ("abcd",))
    assert score("anls", ["abxx"], [item])[0] == score("anls", ["  abxx      "], [item])[0] == 0.5
    assert score("anls_docvqa", ["  abxx      "], [item])[0] > 0.8


def test_gqa_official_does_not_delete_punctuation():
    item = Item("1", ("t-shirt",))
    assert score("gqa", ["T-shirt."], [item])[0] == 1.0
    assert score("gqa", ["tshirt"], [item])[0] == 0.0
    assert score("gqa_loose", ["tshirt"], [item])[0] == 1.0


def test_a_refused_category_is_named():
    with pytest.raises(ValueError, match="no sub-task 'colour'"):
        score("mme", ["yes"], [Item("1", ("yes",), category="colour")])
    with pytest.raises(ValueError, match="ability/data set"):
        score("tiny_lvlm", ["yes"], [Item("1", ("yes",), category="perception")])
    with pytest.raises(ValueError, match="use metric: exact"):
        score("vqa", ["yes"], [Item("1", ("yes",))])
    with pytest.raises(ValueError, match="neither an option nor a letter"):
        score("letters", ["A"], [Item("1", ("elk",), choices=("cat", "dog"))])
