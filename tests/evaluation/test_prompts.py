"""The words that a model is asked: what a wording fills in, what it leaves alone and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmmoe.evaluation.prompts import check_prompt, letter, worded
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.spec import BenchmarkSpec

CHOSEN = "{hint}\n{question}\n{choices}\nAnswer with one of {letters}."


def test_lmms_eval_s_capitalize_defect_a_question_keeps_its_letters(benchmark_file):
    asked = "what does the NASA sign at McDonald's say?"
    file = benchmark_file([{"id": 1, "question": asked, "answer": "x"}])
    spec = BenchmarkSpec(name="b", file=str(file), kind="short_answer", prompt="{question}\nBriefly.")
    assert load_questions(spec).questions[0].text == f"{asked}\nBriefly."
    assert asked.capitalize() != asked, "the defect would show"


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=4))
def test_any_words_come_through_as_they_are(question, choices):
    lines = [f"{name}. {choice}" for name, choice in zip("ABCD", choices, strict=False)]
    expected = "\n".join([question, *lines])
    assert worded("{question}\n{choices}", question or "?", choices=choices) == (
        expected if question else f"?{expected}"
    )


def test_choices_have_letters():
    text = worded(CHOSEN, "Which?", choices=["cat", "dog", "B. x"], hint="Look.")
    assert text == "Look.\nWhich?\nA. cat\nB. dog\nC. B. x\nAnswer with one of A, B, C."
    assert [letter(place) for place in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_a_line_with_nothing_to_fill_in_is_left_out():
    assert worded(CHOSEN, "Which?", choices=["a", "b"]) == "Which?\nA. a\nB. b\nAnswer with one of A, B."
    assert worded("Context: {hint} {context}\n{question}", "q", context="c") == "Context:  c\nq"
    assert worded("Context: {hint} {context}\n{question}", "q") == "q"
    assert worded("\n{question}\n", "q") == "\nq\n", "a line without places stays"


def test_braces_are_no_code():
    assert worded("{question} {{as}} said", "{0} {question} {x.y}") == "{0} {question} {x.y} {as} said"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{qestion}", r"holds \{qestion\} in a form that is not known .*did you mean \{question\}"),
        ("{question.__class__}", "in a form that is not known"),
        ("{question!r}", "in a form that is not known"),
        ("{question:>9}", "in a form that is not known"),
        ("{}", "in a form that is not known"),
        ("{question", "a brace that is meant is written twice"),
        ("What is seen?", r"does not hold \{question\}"),
    ],
)
def test_wordings_that_are_refused(prompt, words):
    with pytest.raises(ValueError, match=words):
        check_prompt(prompt)
    with pytest.raises(ValidationError):
        BenchmarkSpec(name="b", file="f", kind="short_answer", prompt=prompt)


def test_a_wording_may_say_all_where_there_is_no_question():
    fields = {"question": None}
    spec = BenchmarkSpec(name="b", file="f.csv", kind="short_answer", prompt="Describe it.", fields=fields)
    assert spec.fields is not None
