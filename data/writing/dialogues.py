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
REWRITE = {
    "train": (
        'Produce a picture that says "{word}", {ink} on {paper}.',
        'Paint the word "{word}" in {ink} on {paper} paper.',
        'Draw me a {paper} sign that reads "{word}" in {ink} letters.',
        'I need an illustration: "{word}" written in {ink} on {paper}.',
        'Render "{word}" with {ink} letters on a {paper} ground.',
        'Could you design a card: "{word}", letters {ink}, paper {paper}?',
        'Give me "{word}" as a picture, please; {ink} letters, {paper} paper.',
        'On {paper}, in {ink}: write "{word}".',
        'A {paper} poster should show "{word}" in {ink}. Make it.',
        'I want to see "{word}" in {ink}, and the paper is to be {paper}.',
    ),
    "test": (
        'Sketch a {paper} card with "{word}" on it in {ink}.',
        'Make me a picture where "{word}" stands in {ink} on {paper}.',
        'Please draw "{word}" in {ink}, the paper {paper}.',
        'Show the word "{word}" in a picture, {ink} on {paper}.',
    ),
}
"""Prompts for pictures without the phrases by which TextHarmony's released rule knows them, by split."""
REREAD = {
    "train": (
        "Somebody asked to generate an image with this word: which?",
        "What does it say? Do not generate an image.",
        "Before you fill the masked part: what does this one say?",
        "You do not have to generate an image. Only tell me the word.",
        "Which word is it? Please do not fill the masked part of anything.",
        "To generate an image took a minute; what is written on it?",
        "I did generate an image. Can you read it?",
        "Which word would you not have to guess if you were to fill the masked part?",
    ),
    "test": (
        "To generate an image like this, which word would one ask for?",
        "Nobody should fill the masked part here; what does it say?",
    ),
}
"""Questions for text with these phrases in them."""
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


def rewrite(strip: Strip, words: Sequence[str], draw: random.Random, split: str = "train") -> Said:
    """Asks for the picture of a word in other words."""
    look, wording = strip.look, draw.choice(REWRITE[split])
    return Said(wording.format(word=strip.word, ink=look.ink, paper=look.paper), strip.word, drawn=strip.draw())


def reread(strip: Strip, words: Sequence[str], draw: random.Random, split: str = "train") -> Said:
    """Asks for the word in words that sound like a prompt for a picture."""
    return Said(draw.choice(REREAD[split]), strip.word, strip.draw())


Ask = Callable[[Any, Sequence[str], random.Random], Said]
COMPREHENSION: dict[str, Ask] = {"read": read, "four": four, "colour": colour, "place": place, "reread": reread}
GENERATION: dict[str, Ask] = {"write": write, "edit": edit, "segment": segment, "rewrite": rewrite}
TASKS = COMPREHENSION | GENERATION
REWORDED = {"rewrite": rewrite, "reread": reread}


def said(task: str, cards: Sequence[Strip | Page], words: Sequence[str], split: str) -> Iterator[Said]:
    """Yields one dialogue a card."""
    for number, card in enumerate(cards):
        draw = generator("said", split, task, number)
        if task in REWORDED:
            yield REWORDED[task](card, words, draw, split)  # type: ignore[arg-type]  # reworded tasks are about strips
        else:
            yield TASKS[task](card, words, draw)
