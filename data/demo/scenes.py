"""Small scenes: the same thing one to six times on a grid, and two things side by side or one above the other."""

from __future__ import annotations

from dataclasses import dataclass

from demo.emoji import BACKGROUNDS, SIZE, Concept, rasterise
from PIL import Image
from preparation.chance import generator

MOST = 6
SIDES = ("left", "right")
ENDS = ("top", "bottom")


@dataclass(frozen=True)
class CountScene:
    """A thing several times, in cells of a three by three grid."""

    path: str
    concept: str
    artist: str
    code: str
    cells: tuple[int, ...]
    background: tuple[int, int, int]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.cells)

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas = Image.new("RGB", (SIZE, SIZE), self.background)
        glyph = rasterise(self.artist, self.code, 30)
        for cell in self.cells:
            canvas.paste(glyph, (1 + 32 * (cell % 3), 1 + 32 * (cell // 3)), glyph)
        return canvas


@dataclass(frozen=True)
class PairScene:
    """Two different things; `across` puts them left and right, otherwise above and below."""

    path: str
    concepts: tuple[str, str]
    artist: str
    codes: tuple[str, str]
    across: bool
    background: tuple[int, int, int]

    @property
    def places(self) -> tuple[str, str]:
        """The names of the two places."""
        return SIDES if self.across else ENDS

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas = Image.new("RGB", (SIZE, SIZE), self.background)
        for place, code in enumerate(self.codes):
            glyph = rasterise(self.artist, code, 46)
            corner = (1 + 48 * place, 25) if self.across else (25, 1 + 48 * place)
            canvas.paste(glyph, corner, glyph)
        return canvas


Drawn = list[tuple[Concept, str]]
"""Concepts with an artist who drew them."""


def plan_counts(drawn: Drawn, number: int, prefix: str) -> list[CountScene]:
    """Returns scenes whose counts 1 to 6 are equally frequent."""
    scenes = []
    for index in range(number):
        draw = generator("count", prefix, index)
        concept, artist = draw.choice(drawn)
        cells = tuple(sorted(draw.sample(range(9), 1 + index % MOST)))
        background = draw.choice(BACKGROUNDS)
        scenes.append(
            CountScene(f"{prefix}-count-{index:04d}.png", concept.name, artist, concept.code, cells, background)
        )
    return scenes


def plan_pairs(drawn: Drawn, number: int, prefix: str) -> list[PairScene]:
    """Returns scenes of two things by the same artist; half of them across."""
    by_artist: dict[str, list[Concept]] = {}
    for concept, artist in drawn:
        by_artist.setdefault(artist, []).append(concept)
    scenes = []
    for index in range(number):
        draw = generator("pair", prefix, index)
        _, artist = draw.choice(drawn)
        first, second = draw.sample(by_artist[artist], 2)
        scenes.append(
            PairScene(
                path=f"{prefix}-pair-{index:04d}.png",
                concepts=(first.name, second.name),
                artist=artist,
                codes=(first.code, second.code),
                across=index % 2 == 0,
                background=draw.choice(BACKGROUNDS),
            )
        )
    return scenes
