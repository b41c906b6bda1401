"""MoVA in words: how its release reads the answer of a routing pass, and the text that it gives to BERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmmoe.data.question_text import joined_questions, questions_of
from mmmoe.data.record import Turn
from mmmoe.data.routing_prompt import released_routing


@pytest.fixture
def cases(request):
    """The lines of a recorded case."""
    folder = Path(request.config.getoption("--golden") or Path(__file__).parent) / "mova"
    found = (folder / f"{request.param}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in found if line.strip()]


@pytest.mark.parametrize("cases", ["routing_answer_parsing"], indirect=True)
def test_answers_are_read_as_released(cases):
    assert len(cases) >= 27
    for case in cases:
        assert list(released_routing(case["answer"], 7)) == case["routing"], case["answer"]


@pytest.mark.parametrize("cases", ["text_encoder_prompt"], indirect=True)
def test_text_of_the_gate_is_the_released_one(cases):
    assert len(cases) >= 3
    for case in cases:
        assert [joined_questions(questions) for questions in case["questions"]] == case["text"]
        for questions in case["questions"]:
            turns = [turn for text in questions for turn in (Turn("human", f"<image>\n{text}"), Turn("gpt", "yes"))]
            assert questions_of(turns) == questions
