"""Pictures of words: letters at a fixed pitch on a strip, whole, masked, as a map of letters; and words on a page."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from demo.documents import font_files, open_font
from PIL import Image, ImageDraw
from preparation.chance import generator

WIDTH, HEIGHT, PITCH = 96, 32, 16
SIDE = 96
INKS = {"black": (0, 0, 0), "red": (190, 20, 30), "blue": (20, 50, 190), "green": (10, 110, 40)}
PAPERS = {"white": (255, 255, 255), "yellow": (255, 236, 130), "pink": (255, 205, 220), "grey": (205, 205, 205)}
FONTS = {"DejaVu Sans": 1, "DejaVu Serif": 1}
"""Families that words are written in, and which of their cuts (bold): the picture of a letter must be known."""
MASK = (128, 128, 128)
LETTER_SIZE = 20


@dataclass(frozen=True)
class Look:
    """How a word is written."""

    font: str
    """File of the font."""
    ink: str
    paper: str


@dataclass(frozen=True)
class Strip:
    """A word in capitals, its letters side by side in the middle of a strip."""

    word: str
    look: Look

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPERS[self.look.paper])
        _letters(canvas, self.word, self.look.font, [INKS[self.look.ink]] * len(self.word))
        return canvas

    def masked(self) -> Image.Image:
        """Returns the picture with the word covered."""
        canvas = self.draw()
        ImageDraw.Draw(canvas).rectangle(self.box, MASK)
        return canvas

    def segments(self) -> Image.Image:
        """Returns the map of letters: white where one is, black elsewhere."""
        canvas = Image.new("RGB", (WIDTH, HEIGHT), "black")
        _letters(canvas, self.word, self.look.font, [(255, 255, 255)] * len(self.word))
        return canvas

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Returns left, top, right and bottom of the word's cells, the last pixels included."""
        left = (WIDTH - PITCH * len(self.word)) // 2
        return (left, 4, left + PITCH * len(self.word) - 1, HEIGHT - 5)


@dataclass(frozen=True)
class Page:
    """A word somewhere on a square page."""

    word: str
    look: Look
    corner: tuple[int, int]

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas = Image.new("RGB", (SIDE, SIDE), PAPERS[self.look.paper])
        ImageDraw.Draw(canvas).text(self.corner, self.word, INKS[self.look.ink], open_font(self.look.font, 16), "lt")
        return canvas

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Returns left, top, right and bottom of the word in hundredths of the page."""
        left, top, right, bottom = open_font(self.look.font, 16).getbbox(self.word, anchor="lt")
        x, y = self.corner
        edges = (x + left, y + top, x + right, y + bottom)
        return tuple(min(99, round(100 * edge / SIDE)) for edge in edges)  # type: ignore[return-value]


def look(draw: random.Random, packages: Path) -> Look:
    """Returns a look; every font, ink and paper is equally likely."""
    families = font_files(packages)
    family = draw.choice(sorted(FONTS))
    return Look(families[family][FONTS[family]], draw.choice(sorted(INKS)), draw.choice(sorted(PAPERS)))


def strips(words: list[str], number: int, name: str, packages: Path) -> list[Strip]:
    """Returns strips that go round the words, so that each is written about equally often."""
    return [Strip(word, look(draw, packages)) for word, draw in _rounds(words, number, f"strip-{name}")]


def pages(words: list[str], number: int, name: str, packages: Path) -> list[Page]:
    """Returns pages, the word anywhere it fits."""
    made = []
    for word, draw in _rounds(words, number, f"page-{name}"):
        style = look(draw, packages)
        wide, high = open_font(style.font, 16).getbbox(word, anchor="lt")[2:]
        corner = (draw.randint(2, int(SIDE - wide - 2)), draw.randint(2, int(SIDE - high - 2)))
        made.append(Page(word, style, corner))
    return made


def _rounds(words: list[str], number: int, name: str) -> list[tuple[str, random.Random]]:
    """Returns words in an order drawn anew each lap, and a generator for each."""
    found = []
    for index in range(number):
        lap, place = divmod(index, len(words))
        order = generator("order", name, lap).sample(words, len(words))
        found.append((order[place].upper(), generator(name, index)))
    return found


def _letters(canvas: Image.Image, word: str, font: str, inks: list[tuple[int, int, int]]) -> None:
    pen, left = ImageDraw.Draw(canvas), (WIDTH - PITCH * len(word)) / 2
    for place, (letter, ink) in enumerate(zip(word, inks, strict=True)):
        pen.text((left + PITCH * (place + 0.5), HEIGHT / 2), letter, ink, open_font(font, LETTER_SIZE), anchor="mm")
