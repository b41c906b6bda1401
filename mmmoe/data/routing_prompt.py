"""MoVA's coarse step in words: which vision experts a question needs, asked and answered with letters."""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 3
"""Experts of one image at most, as in the paper."""
NONE = "none"
LETTERS = string.ascii_uppercase

_LABELLED = re.compile(r"\(\s*([A-Z])\s*\)")
_ALONE = re.compile(r"(?<!\w)(?<!\w')([A-Z])(?!'?\w)")
_WORD = re.compile(r"(?<!\w)[AI](?=\s+[a-z])(?!\s+(?:and|or|is)\b)")
_NOBODY = re.compile(r"\W*none\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pool:
    """The experts a prompt offers, by letter: A is the first."""

    experts: tuple[int, ...]
    """Number of each in the model's order."""
    descriptions: tuple[str, ...]
    """What is said of each."""

    def question(self, text: str, instruction: str) -> str:
        """Returns what the language model is asked about a question."""
        lines = [f"{letter}. {said}" for letter, said in zip(LETTERS, self.descriptions, strict=False)]
        return "\n".join([instruction, *lines, text])

    def answer(self, routing: Sequence[int]) -> str:
        """Returns the letters of a routing's experts, those that the pool does not offer left out."""
        named = [LETTERS[place] for place, expert in enumerate(self.experts) if routing[expert]]
        return ", ".join(named) or NONE

    def routing(self, answer: str, num_experts: int) -> tuple[int, ...]:
        """Returns the vector (E,) that an answer means."""
        places = letters_in(answer, len(self.experts))[:MOST]
        return one_where({self.experts[place] for place in places}, num_experts)


def whole_pool(descriptions: Sequence[Sequence[str]]) -> Pool:
    """Returns all experts in the model's order, each by the first of its descriptions: what inference asks with."""
    return Pool(tuple(range(len(descriptions))), tuple(said[0] for said in descriptions))


def drawn_pool(
    descriptions: Sequence[Sequence[str]], seed: str, *, shuffle: bool, truncate: bool, paraphrase: bool
) -> Pool:
    """Returns a pool drawn for one conversation, a pure function of the seed (paper, section 3.2: augmentation).

    Args:
        descriptions: by expert, the ways to describe it; the first is the usual one.
        seed: names the conversation.
        shuffle: whether the order is drawn.
        truncate: whether only some are offered, at least two.
        paraphrase: whether the descriptions are drawn.
    """
    draw = random.Random(hashlib.sha256(seed.encode()).digest())
    order = list(range(len(descriptions)))
    if shuffle:
        draw.shuffle(order)
    if truncate and len(order) > 2:
        kept = set(draw.sample(order, draw.randint(2, len(order))))
        order = [expert for expert in order if expert in kept]
    said = tuple(draw.choice(descriptions[expert]) if paraphrase else descriptions[expert][0] for expert in order)
    return Pool(tuple(order), said)


def letters_in(answer: str, count: int) -> list[int]:
    """Returns the places of the letters that an answer names, in order, each once.

    A letter counts where it stands alone: `B`, `(B)`, `B:`; in words it does not (the release's rule finds A in
    `Answer`), nor do the article and the pronoun. Letters beyond the count are none, and so are those after `none`.
    """
    if _NOBODY.match(answer):
        return []
    found = _LABELLED.findall(answer) or _ALONE.findall(_WORD.sub("", answer))
    places = [LETTERS.index(letter) for letter in found]
    return list(dict.fromkeys(place for place in places if place < count))


def released_routing(answer: str, num_experts: int) -> tuple[int, ...]:
    """Returns the vector by the release's rule: any capital in the first three comma-separated parts."""
    parts = answer.split(",")[:MOST]
    return one_where(
        {place for place in range(num_experts) if any(LETTERS[place] in part for part in parts)}, num_experts
    )


def one_where(chosen: set[int], num_experts: int) -> tuple[int, ...]:
    """Returns the vector (E,) that is 1 at the chosen experts."""
    return tuple(int(expert in chosen) for expert in range(num_experts))
