"""Questions with their answers, and the turns of LLaVA's dialogues they become."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """One question about one thing, with its answer and, where it is a choice, the choices."""

    task: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


def any_of(choices: Sequence[str]) -> str:
    """Returns 'a, b or c'."""
    return ", ".join(choices[:-1]) + " or " + choices[-1]


def with_others(right: str, others: Sequence[str], draw: random.Random) -> tuple[str, ...]:
    """Returns the right answer among three wrong ones, in random order."""
    choices = [right, *draw.sample([other for other in others if other != right], 3)]
    draw.shuffle(choices)
    return tuple(choices)


def turns(opening: str, asked: Sequence[Asked]) -> list[dict[str, str]]:
    """Returns the turns of a dialogue that opens with an item of media or its description."""
    said = []
    for place, question in enumerate(asked):
        said.append({"from": "human", "value": f"{opening}\n{question.question}" if place == 0 else question.question})
        said.append({"from": "gpt", "value": question.answer})
    return said
