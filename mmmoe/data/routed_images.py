"""MoVA's guide: which vision experts look at a sample's images, and what its adapter is told besides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmmoe.config.ids import GLANCE_VIEW, QUESTION_VIEW, ROUTING_VIEW
from mmmoe.data.guide import Guided
from mmmoe.data.media import MARKED, count_marks
from mmmoe.data.question_text import QuestionIds, questions_of
from mmmoe.data.record import Record, Turn
from mmmoe.data.routing_prompt import MOST, Pool, drawn_pool, one_where, released_routing, whole_pool

Choice = Callable[[Record, int, int], Sequence[int]]
"""From a sample (its record, source and index) to its routing (E,)."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for each routing conversation."""

    shuffle: bool = True
    truncate: bool = True
    paraphrase: bool = True


class RoutedImages:
    """Looks at images through the base tower and the experts routed to them.

    In training a sample brings its routing along; a source of routing conversations asks for it instead.
    """

    def __init__(
        self,
        descriptions: Mapping[str, Sequence[str]],
        question_ids: QuestionIds,
        instruction: str,
        rule: Literal["strict", "released"] = "strict",
        choice: Choice | None = None,
        conversations: Sequence[Augmentation | None] = (),
    ) -> None:
        """Puts the parts together.

        Args:
            descriptions: by expert, in the model's order, the ways to describe it.
            question_ids: of the gate's text encoder.
            instruction: of the routing prompt.
            rule: how the language model's answer is read.
            choice: says which experts a training sample gets; without it as its shard says.
            conversations: by source, how its samples become routing conversations; None where they do not.
        """
        self.experts = tuple(descriptions)
        self.pool = whole_pool(list(descriptions.values()))
        self._descriptions = [list(said) for said in descriptions.values()]
        self._question_ids = question_ids
        self._instruction = instruction
        self._rule = rule
        self._choice = choice or self._of_shard
        self._conversations = conversations

    def __call__(self, record: Record, source: int, index: int) -> Guided:
        """Returns how a training sample is asked.

        Raises:
            ValueError: It has no routing weights, or not one for each expert.
        """
        if not count_marks(turn.text for turn in record.turns)["image"]:
            return Guided(record.turns, frozenset())
        routing = tuple(self._choice(record, source, index))
        turns = record.turns
        augmentation = self._conversations[source] if source < len(self._conversations) else None
        if augmentation is not None:
            turns = self._conversation(turns, routing, record.key, augmentation)
            views, beside = self.of_question("\n".join(questions_of(record.turns)), None)
            return Guided(turns, views, beside, {"image": GLANCE_VIEW})
        return Guided(turns, self.views(routing), self._beside(questions_of(turns), routing))

    def asked(self, record: Record, source: int, index: int) -> Guided:
        """Returns a training sample as the routing pass of an exam: its first question, all experts, no answer."""
        del source, index
        turns = (Turn("human", self.prompt(_first_question(record.turns))),)
        views, beside = self.of_question(questions_of(record.turns)[0], None)
        return Guided(turns, views, beside, {"image": GLANCE_VIEW})

    def of_question(self, text: str, routing: Sequence[int] | None) -> tuple[frozenset[str], Mapping[str, Tensor]]:
        """Returns the views of a question's image and what goes with it; without a routing for a routing pass."""
        questions = [MARKED.sub("", text).strip()]
        if routing is None:
            return self.views(()), self._beside(questions, [-1] * len(self.experts))
        return self.views(routing), self._beside(questions, list(routing) or [0] * len(self.experts))

    def prompt(self, text: str) -> str:
        """Returns what the language model is asked in a routing pass about a question."""
        return routing_text(self.pool, text, self._instruction)

    def read(self, answer: str) -> tuple[int, ...]:
        """Returns the routing (E,) that it answered."""
        if self._rule == "released":
            return released_routing(answer, len(self.experts))
        return self.pool.routing(answer, len(self.experts))

    def views(self, routing: Sequence[int]) -> frozenset[str]:
        """Returns the base tower's view and those of the routed experts."""
        chosen = (name for name, bit in zip(self.experts, routing, strict=False) if bit == 1)
        return frozenset(["image", *(f"image.{name}" for name in chosen)])

    def _beside(self, questions: Sequence[str], routing: Sequence[int]) -> dict[str, Tensor]:
        return {
            ROUTING_VIEW: torch.tensor([list(routing)], dtype=torch.int8),
            QUESTION_VIEW: self._question_ids(questions),
        }

    def _conversation(
        self, turns: Sequence[Turn], routing: Sequence[int], key: str, augmentation: Augmentation
    ) -> tuple[Turn, ...]:
        pool = drawn_pool(
            self._descriptions,
            key,
            shuffle=augmentation.shuffle,
            truncate=augmentation.truncate,
            paraphrase=augmentation.paraphrase,
        )
        asked = routing_text(pool, _first_question(turns), self._instruction)
        return (Turn("human", asked), Turn("gpt", pool.answer(routing)))

    def _of_shard(self, record: Record, source: int, index: int) -> Sequence[int]:
        del source, index
        if record.routing is None:
            raise ValueError(
                "the sample has no routing_weights; label its shards with `mmmoe data route`, or let the stage build, "
                "draw or switch off the routing (stages.<name>.routing)"
            )
        if len(record.routing) != len(self.experts):
            raise ValueError(
                f"the sample has {len(record.routing)} routing_weights, the model {len(self.experts)} experts "
                f"({', '.join(self.experts)}); label the shards for this model"
            )
        if not set(record.routing) <= {0, 1}:
            raise ValueError(f"routing_weights {list(record.routing)} are not all 0 and 1; label the shards anew")
        return record.routing


def routing_text(pool: Pool, question: str, instruction: str) -> str:
    """Returns a routing prompt; marks of the media stay in front."""
    marks = "".join(f"{mark}\n" for mark in MARKED.findall(question))
    return marks + pool.question(MARKED.sub("", question).strip(), instruction)


def _first_question(turns: Sequence[Turn]) -> str:
    """Returns what the human asks first in a dialogue, with the marks of all its media in front.

    Raises:
        ValueError: The human says nothing.
    """
    questions = questions_of(turns)
    if not questions:
        raise ValueError(f"a dialogue needs a human turn, got {[turn.role for turn in turns]}")
    return "".join(mark for turn in turns for mark in MARKED.findall(turn.text)) + questions[0]


def fixed(kind: Literal["none", "all"], num_experts: int) -> Choice:
    """Returns the choice of no expert, or of all."""
    routing = (int(kind == "all"),) * num_experts
    return lambda record, source, index: routing


def drawn(num_experts: int, seed: int, most: int = MOST, least: int = 0) -> Choice:
    """Returns a choice that draws how many experts and which, a pure function of the seed and the sample."""

    def choose(record: Record, source: int, index: int) -> Sequence[int]:
        return draw_routing(f"{seed}/{source}/{index}", num_experts, most, least)

    return choose


def draw_routing(seed: str, num_experts: int, most: int = MOST, least: int = 0) -> tuple[int, ...]:
    """Returns a routing of `least` to `most` experts, all numbers and all sets of a number equally likely."""
    draw = random.Random(hashlib.sha256(seed.encode()).digest())
    count = draw.randint(min(least, num_experts), min(most, num_experts))
    return one_where(set(draw.sample(range(num_experts), count)), num_experts)
