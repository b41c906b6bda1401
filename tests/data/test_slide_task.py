"""What a dialogue asks for: the released rule, where it fails, and the answer that says it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mmmoe.config.ids import TASKS
from mmmoe.data.record import Turn
from mmmoe.data.slide_task import IMAGE_GENERATION, TEXT_GENERATION, TRIGGERS, answer_task, keyword_task

FILE = Path(__file__).resolve().parents[2] / "data/text_harmony/paraphrases.jsonl"


def prompts():
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_numbers_of_the_tasks():
    assert TASKS[IMAGE_GENERATION] == "image_generation"
    assert TASKS[TEXT_GENERATION] == "text_generation"


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["SALE"], TEXT_GENERATION),
        ([], TEXT_GENERATION),
        (["<image>"], IMAGE_GENERATION),
        (["It says SALE.", "Here it is: <image>"], IMAGE_GENERATION),
    ],
)
def test_an_answer_with_an_image_asks_for_one(answers, task):
    turns = [turn for answer in answers for turn in (Turn("human", "<image>\nwhat?"), Turn("gpt", answer))]
    assert answer_task([Turn("human", "<image>\nfirst"), *turns]) == task


def test_paraphrases_are_what_they_say():
    rows = prompts()
    counts = Counter((row["split"], row["task"]) for row in rows)
    assert sum(n for (split, _), n in counts.items() if split == "train") == 60
    assert sum(n for (split, _), n in counts.items() if split == "held_out") == 42
    assert {task for _, task in counts} == set(TASKS)
    assert min(counts.values()) >= 20
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        has_trigger = any(trigger in row["question"].lower() for trigger in TRIGGERS)
        assert has_trigger == (row["kind"] in ("released", "trigger in a question")), row["question"]


@pytest.mark.parametrize(("split", "right", "of"), [("train", 18, 60), ("held_out", 12, 42)])
def test_the_released_rule_fails_on_all_paraphrases(split, right, of):
    """It is right on the released wordings and on plain questions alone, which are among them for comparison."""
    rows = [row for row in prompts() if row["split"] == split]
    is_right = [TASKS[keyword_task(row["question"])] == row["task"] for row in rows]
    assert (sum(is_right), len(rows)) == (right, of)
    simple = [row["kind"] in ("released", "plain") for row in rows]
    assert is_right == simple
