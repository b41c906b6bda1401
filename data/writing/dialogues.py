"""What is said about pictures of words: questions whose answers are text, and prompts whose answers are pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from preparation.chance import generator
from preparation.dialogue import any_of, with_others
from writing.cards import INKS, PAPERS, Page, Strip

IMAGE = "<image>"
WRITE = 'Generate an image of the word "{word}" in {ink} on {paper}.'
EDIT = 'Fill the masked part with the word "{word}" in {ink}.'
SEGMENT = "Generate an image of the letters of this picture, white on black."
READ = "What does it say?"
FOUR = "Which word is it: {choices}?"
INK, PAPER = "What colour are the letters?", "What colour is the paper?"
PLACE = 'Where is the word "{word}"?'


@dataclass(frozen=True)
class Said:
    """One prompt and its answer, in pictures and words."""

    question: str
    answer: str
    """Text; of a picture what is written on it."""
    shown: Image.Image | None = None
    """What the question is about."""
    drawn: Image.Image | None = None
    """What is to be drawn."""
    choices: tuple[str, ...] = ()

    def row(self, identity: str, save: Callable[[Image.Image, str], str]) -> dict[str, Any]:
        """Returns the dialogue as a row of LLaVA's JSON; `save` keeps a picture and returns its path."""
        pictures = [(self.shown, "shown"), (self.drawn, "drawn")]
        paths = [save(picture, f"{identity}-{name}.png") for picture, name in pictures if picture is not None]
        human = self.question if self.shown is None else f"{IMAGE}\n{self.question}"
        turns = [
            {"from": "human", "value": human},
            {"from": "gpt", "value": self.answer if self.drawn is None else IMAGE},
        ]
        return {"id": identity, "image": paths, "conversations": turns}


def read(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks for the word."""
    return Said(READ, strip.word, strip.draw())


def four(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks which of four words of one length it is."""
    alike = [word.upper() for word in words if len(word) == len(strip.word)]
    choices = with_others(strip.word, alike, draw)
    return Said(FOUR.format(choices=any_of(choices)), strip.word, strip.draw(), choices=choices)


def colour(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks for the colour of the letters or of the paper."""
    if draw.random() < 0.5:
        return Said(INK, strip.look.ink, strip.draw(), choices=tuple(sorted(INKS)))
    return Said(PAPER, strip.look.paper, strip.draw(), choices=tuple(sorted(PAPERS)))


def place(page: Page, words: Sequence[str], draw: random.Random) -> Said:
    """Asks where the word stands: left, top, right and bottom in hundredths of the picture."""
    return Said(PLACE.format(word=page.word), " ".join(f"{edge:02d}" for edge in page.box), page.draw())


def write(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks for the picture of a word."""
    look = strip.look
    return Said(WRITE.format(word=strip.word, ink=look.ink, paper=look.paper), strip.word, drawn=strip.draw())


def edit(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks to write a word where the picture is covered."""
    return Said(EDIT.format(word=strip.word, ink=strip.look.ink), strip.word, strip.masked(), strip.draw())


def segment(strip: Strip, words: Sequence[str], draw: random.Random) -> Said:
    """Asks for the map of letters."""
    return Said(SEGMENT, strip.word, strip.draw(), strip.segments())


Ask = Callable[[Any, Sequence[str], random.Random], Said]
COMPREHENSION: dict[str, Ask] = {"read": read, "four": four, "colour": colour, "place": place}
GENERATION: dict[str, Ask] = {"write": write, "edit": edit, "segment": segment}
TASKS = COMPREHENSION | GENERATION


def said(task: str, cards: Sequence[Strip | Page], words: Sequence[str], name: str) -> Iterator[Said]:
    """Yields one dialogue a card."""
    for number, card in enumerate(cards):
        yield TASKS[task](card, words, generator("said", name, task, number))
