"""Rules that no golden case covers: our exact match, letters, whole words, boxes, VQA's corner cases, the tokenizer."""

from __future__ import annotations

import string

import numpy as np
import pytest

from mmmoe.evaluation.metrics.exact import is_correct, normalise
from mmmoe.evaluation.metrics.metric import Item, total
from mmmoe.evaluation.metrics.options import leading_letter, mmbench_letter
from mmmoe.evaluation.metrics.registry import METRICS
from mmmoe.evaluation.metrics.treebank import tokens
from mmmoe.evaluation.metrics.vqa import agreement
from mmmoe.evaluation.metrics.words import holds


def one(name, prediction, *answers, choices=()):
    (verdict,) = METRICS[name].judge([prediction], [Item("1", answers, choices)])
    return verdict.score


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("Yes.", "yes", True),
        ("  two   dogs ", "Two dogs!", True),
        ("", "", False),
        ("no", "yes", False),
        ("<", ">", False),
        ("<", "<", True),
        ("", "<", False),
        ("1,000", "1000", True),
    ],
)
def test_exact_match_after_normalisation(prediction, answer, right):
    assert is_correct(prediction, answer) is right
    assert one("exact", prediction, "something else", answer) == right


def test_normalise():
    assert normalise(" The  RED, car. ") == "the red car"


def test_a_choice_is_its_very_text():
    assert one("choice", "A dog", "A dog") == 1.0
    assert one("choice", "a dog", "A dog") == 0.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("b", "B"), ("B.", "B"), ("(B)", "B"), ("B) a dog", "B"), ("**B**", "B"), ("B: a dog", "B"),
     ("a dog", "B"), ("A dog.", "B"), ("A cat and a dog", None), ("E", None), ("", None), ("Because", None)],
)  # fmt: skip
def test_leading_letter(answer, letter):
    assert leading_letter(answer, ("a cat", "a dog", "a cow")) == letter


def test_the_right_option_is_named_by_text_or_letter():
    assert one("letters", "B", "two", choices=("one", "two")) == 1.0
    assert one("letters", "B", "b", choices=("one", "two")) == 1.0
    assert one("letters", "D", "D") == 1.0
    # Texts that are letters themselves: the text is meant.
    assert one("letters", "A", "B", choices=("B", "A")) == 1.0


def test_a_declared_letter_counts_where_the_lone_letter_is_too_early():
    long = "The correct answer is **B**, because one of the others is plainly wrong here"
    assert mmbench_letter(long, ("w", "x", "y", "z")) == "B"
    assert mmbench_letter("B is what I believe to be the one that is right", ("ww", "xx", "yy", "zz")) is None


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [("He is playing a guitar.", "guitar", True), ("two men", "2 men", True), ("catalogue", "cat", False),
     ("the dog", "a", False), ("(", "(", False)],
)  # fmt: skip
def test_whole_words(prediction, answer, right):
    assert holds(prediction, answer) is right


def test_tiny_lvlm_sums_abilities_whose_data_sets_weigh_alike():
    rows = [("a/x", 1), ("a/x", 1), ("a/x", 0), ("a/x", 0), ("a/y", 1), ("b/z", 0), ("b/z", 1), ("b/z", 1), ("b/z", 1)]
    items = [Item(str(n), ("yes",), category=category) for n, (category, _) in enumerate(rows)]
    metric = METRICS["tiny_lvlm"]
    verdicts = metric.judge(["yes" if right else "no" for _, right in rows], items)
    sums = total(metric.counts(items, verdicts))
    assert float(metric.headline(sums)) == pytest.approx((0.5 + 1.0) / 2 + 0.75)
    assert float(metric.measures(sums)["a"]) == 0.75


def test_location():
    assert one("location", "[10, 10, 50, 50]", "10 10 50 52") == 1.0
    assert one("location", "nowhere", "10 10 50 52") == 0.0


def test_agreement_is_the_closed_form_for_ten_people():
    """k of ten agree: k of the left-out answers leave k - 1, the others k."""
    for k in range(11):
        want = (k * min(1, max(0, k - 1) / 3) + (10 - k) * min(1, k / 3)) / 10
        assert agreement("x", ["x"] * k + ["y"] * (10 - k)) == pytest.approx(want)


def test_spellings_of_vqa_differ_in_possessives():
    assert one("vqa", "dog 's", *["The dog's"] * 10) == 1.0
    assert one("vqa_v2", "dog 's", *["The dog's"] * 10) == 0.0
    assert one("vqa_v2", "Dog's", *["The dog's"] * 10) == 1.0


def test_vqa_spells_answers_of_which_all_ten_agree_as_well():
    """VQA's first script leaves these as they are; EvalAI's processor and lmms-eval, whose scores ours are, do not."""
    for name in ("vqa", "vqa_v2"):
        assert one(name, "two dogs", *["The two dogs."] * 10) == 1.0
        assert one(name, "The 2 dogs!", *["two dogs"] * 10) == 1.0
        assert one(name, "", *["the"] * 10) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("red\0", "red"), ("red\0\0.", "red"), ("red\0", "red\0\0"), ("\0red", "red"), ("re\0d", "red"), ("\0", ""),
        ("\0!\0", ""), ("İ", "i"), ("İ\0", "i"), ("İ\0", "i̇"), ("İ x", "i̇ "), (" red", "red"),
        ("Straße", "strasse"), ("！", "!"), ("aİb", "ai̇"), ("A-B_c", "abc"),
    ],
)  # fmt: skip
def test_gqa_loose_is_a_comparison_of_numpy_texts(text, answer):
    """As lmms-eval's exact_match with ignore_case and ignore_punctuation, which makes arrays of both."""
    table = str.maketrans("", "", string.punctuation)
    arrays = [np.char.translate(np.char.lower(np.asarray([one_text])), table=table) for one_text in (text, answer)]
    assert one("gqa_loose", text, answer) == float((arrays[0] == arrays[1])[0])


@pytest.mark.parametrize(
    ("said", "official", "of_mova"),
    [
        ("Yes", "yes", "yes"), (" Yes", "yes", "yes"), ("  Yes", None, "no"), ("No", "no", "no"), ("  no", "no", "no"),
        ("   no", None, "no"), ("y", None, "no"), ("n", None, "no"), ("N.O.", None, "no"), ("Y.e.s.", None, "no"),
        ("know", "no", "no"), ("noyes", "no", "no"), ("-yes", "yes", "yes"), ("", None, "no"), ("\nno", "no", "no"),
    ],
)  # fmt: skip
def test_mme_looks_at_the_first_four_letters_as_they_are(said, official, of_mova):
    """MME's script (eval_tool/calculation.py) makes small letters and strips nothing; MoVA's takes all else for no."""
    for name, want in (("mme", official), ("mme_mova", of_mova)):
        (verdict,) = METRICS[name].judge([said], [Item("1", ("Yes",))])
        assert (verdict.parsed, verdict.score) == (want, float(want == "yes"))


def test_a_okvqa_leaves_nobody_out_and_spells_nothing():
    assert one("a_okvqa", "Dog", *["dog"] * 10) == 0.0
    assert one("a_okvqa", "dog", *["dog"] * 2, *["cat"] * 8) == pytest.approx(2 / 3)


def test_mean_f1_of_popes_splits():
    rows = [("random", "yes", "yes"), ("random", "no", "no"), ("popular", "yes", "no"), ("popular", "no", "no")]
    items = [Item(str(n), (label,), category=split) for n, (split, label, _) in enumerate(rows)]
    metric = METRICS["pope"]
    sums = total(metric.counts(items, metric.judge([said for *_, said in rows], items)))
    measures = metric.measures(sums)
    assert float(metric.headline(sums)) == 0.5
    assert (float(measures["random f1"]), float(measures["popular f1"])) == (1.0, 0.0)
    assert float(measures["f1"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("A man's dog isn't here, can't you see? They'll go.", "a man 's dog is n't here ca n't you see they 'll go"),
        ("Mr. Smith's black-and-white U.S. flag", "mr. smith 's black-and-white u.s. flag"),
        ("10:30 a.m. on 12/25/2001", "10:30 a.m. on 12/25/2001"),
        ("1,000.50 dollars $5 5% #1", "1,000.50 dollars $ 5 5 % # 1"),
        (
            "a man,a dog; [one] and/or -- \u201ctwo\u201d",
            "a man a dog -lsb- one -rsb- and/or two",
        ),
        ("cannot gonna 'tis o'clock the '90s", "can not gon na 't is o'clock the '90s"),
        ("wow!!! plan B. Then 8 ft. \U0001f600 caf\u00e9", "wow !!! plan b then 8 ft. caf\u00e9"),
    ],
)
def test_tokens_are_those_of_the_stanford_tokenizer(text, want):
    """What stanford-corenlp 3.4.1 (in pycocoevalcap 1.2) gives for these texts."""
    assert tokens([text]) == [want]


@pytest.mark.parametrize(
    ("captions", "want"),
    [
        (["plan B.", "Then a dog"], ["plan b", "then a dog"]),
        (["plan B.", "then a dog"], ["plan b.", "then a dog"]),
        (["plan B.", "Two dogs"], ["plan b.", "two dogs"]),
        (["plan B.", "Then, a dog"], ["plan b.", "then a dog"]),
        (["plan B.", "Mr. Smith"], ["plan b", "mr. smith"]),
        (["plan B.", "Then"], ["plan b.", "then"]),  # nothing is behind the last word of a file
        (["plan B.", "Then", "x"], ["plan b", "then", "x"]),
        (["plan B.", "", "The cat"], ["plan b", "", "the cat"]),
        (["plan B."], ["plan b."]),
        (["fig.", "5 dogs"], ["fig.", "5 dogs"]),
        (["the dog., no. 5.; x."], ["the dog. no. 5. x."]),
        (["fig.", "five dogs"], ["fig", "five dogs"]),
        (["two\nlines", "one"], ["two lines", "one"]),
        ([], []),
        ([""], [""]),
    ],
)
def test_a_lone_letters_period_depends_on_the_next_caption(captions, want):
    """What stanford-corenlp 3.4.1 gives for a file of these lines."""
    assert tokens(captions) == want
