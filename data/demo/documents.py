"""Documents: a word in capitals, a number, a page of lines, a ruled table; eight font families, one more held out."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from demo.emoji import SIZE
from demo.splits import TEST_FONT, Split
from PIL import Image, ImageDraw, ImageFont
from preparation.chance import generator

MARGIN = 4
PAPERS = ((255, 255, 255), (255, 255, 255), (250, 246, 232), (236, 244, 252), (240, 248, 238))
INKS = ((0, 0, 0), (30, 30, 40), (20, 50, 120), (120, 20, 30), (20, 90, 50))
MATPLOTLIB_FONTS = {
    "DejaVu Sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "DejaVu Serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "DejaVu Sans Mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "Computer Modern": ("cmr10.ttf", "cmss10.ttf", "cmb10.ttf"),
    TEST_FONT: ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
}
NPM_FONTS = ("lato", "comic-neue", "courier-prime", "oswald")


@dataclass(frozen=True)
class Style:
    """How a document is printed."""

    font: str
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class WordCard:
    """One word in capitals, as large as fits."""

    path: str
    word: str
    style: Style

    def draw(self) -> Image.Image:
        """Returns the picture."""
        return draw_large(self.word, self.style)


@dataclass(frozen=True)
class NumberCard:
    """A number of one or two digits, as large as fits."""

    path: str
    number: int
    style: Style

    def draw(self) -> Image.Image:
        """Returns the picture."""
        return draw_large(str(self.number), self.style)


@dataclass(frozen=True)
class TextPage:
    """Lines of small print from the top of a page."""

    path: str
    lines: tuple[str, ...]
    style: Style

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas, pen = sheet(self.style)
        font = open_font(self.style.font, 12)
        for row, line in enumerate(self.lines):
            pen.text((MARGIN, 13 + 15 * row + self.style.shift[1] // 2), line, self.style.ink, font, anchor="ls")
        return canvas


@dataclass(frozen=True)
class RuledTable:
    """A ruled table with a number in each cell."""

    path: str
    cells: tuple[tuple[int, ...], ...]
    style: Style

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas, pen = sheet(self.style)
        rows, columns = len(self.cells), len(self.cells[0])
        wide, high = (SIZE - 8) // columns, (SIZE - 8) // rows
        font = open_font(self.style.font, 14)
        for row in range(rows + 1):
            pen.line((4, 4 + row * high, 4 + columns * wide, 4 + row * high), self.style.ink, 2)
        for column in range(columns + 1):
            pen.line((4 + column * wide, 4, 4 + column * wide, 4 + rows * high), self.style.ink, 2)
        for row, line in enumerate(self.cells):
            for column, value in enumerate(line):
                middle = (5 + (column + 0.5) * wide, 5 + (row + 0.5) * high)
                pen.text(middle, str(value), self.style.ink, font, anchor="mm")
        return canvas


def sheet(style: Style) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an empty page and its pen."""
    canvas = Image.new("RGB", (SIZE, SIZE), style.paper)
    return canvas, ImageDraw.Draw(canvas)


def draw_large(text: str, style: Style) -> Image.Image:
    """Returns a page with the text in the middle, at the largest size that leaves a margin."""
    canvas, pen = sheet(style)
    room = SIZE - 2 * MARGIN
    probe = open_font(style.font, 100).getbbox(text)
    scale = min(room / (probe[2] - probe[0]), 0.75 * room / (probe[3] - probe[1]))
    font = open_font(style.font, int(100 * scale))
    pen.text((SIZE / 2 + style.shift[0], SIZE / 2 + style.shift[1]), text, style.ink, font, anchor="mm")
    return canvas


@functools.lru_cache(maxsize=512)
def open_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Returns a font at a size in pixels."""
    return ImageFont.truetype(path, size)


def font_files(packages: Path) -> dict[str, tuple[str, ...]]:
    """Returns the files of each family: those that come with matplotlib, and those of the font packages."""
    ship = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = {family: tuple(str(ship / name) for name in names) for family, names in MATPLOTLIB_FONTS.items()}
    for family in NPM_FONTS:
        files[family] = tuple(str(path) for path in sorted((packages / family / "files").glob("*.woff")))
    return files


class Press:
    """Plans documents for one split: which fonts and which words it may use."""

    def __init__(self, packages: Path, words: list[str], split: Split, prefix: str, *, test_font: bool = False) -> None:
        families = font_files(packages)
        chosen = [name for name in sorted(families) if (name == TEST_FONT) == test_font]
        self.families = [families[name] for name in chosen]
        self.words, self.split, self.prefix = words, split, prefix

    def style(self, draw: random.Random) -> Style:
        """Returns a look; every family is equally likely."""
        font = draw.choice(draw.choice(self.families))
        return Style(font, draw.choice(INKS), draw.choice(PAPERS), (draw.randint(-2, 2), draw.randint(-6, 6)))

    def word_cards(self, number: int) -> list[WordCard]:
        """Returns cards that go round the words, so that each is printed about equally often."""
        cards = []
        for index in range(number):
            draw = generator("word-card", self.prefix, index)
            lap, place = divmod(index, len(self.words))
            order = generator("word-order", self.prefix, lap).sample(self.words, len(self.words))
            cards.append(WordCard(f"{self.prefix}-word-{index:04d}.png", order[place].upper(), self.style(draw)))
        return cards

    def number_cards(self, number: int) -> list[NumberCard]:
        """Returns cards of numbers from 0 to 20; what a split holds out is how they are printed."""
        cards = []
        for index in range(number):
            draw = generator("number-card", self.prefix, index)
            cards.append(NumberCard(f"{self.prefix}-number-{index:04d}.png", draw.randint(0, 20), self.style(draw)))
        return cards

    def pages(self, number: int) -> list[TextPage]:
        """Returns pages of one to six lines, each count equally frequent."""
        pages = []
        for index in range(number):
            draw = generator("page", self.prefix, index)
            lines = tuple(" ".join(draw.sample(self.words, draw.randint(2, 3))) for _ in range(1 + index % 6))
            pages.append(TextPage(f"{self.prefix}-page-{index:04d}.png", lines, self.style(draw)))
        return pages

    def tables(self, number: int) -> list[RuledTable]:
        """Returns tables of two to five rows and two to four columns, each pair equally frequent."""
        tables = []
        for index in range(number):
            draw = generator("table", self.prefix, index)
            rows, columns = 2 + index % 4, 2 + (index // 4) % 3
            cells = tuple(tuple(draw.randint(0, 99) for _ in range(columns)) for _ in range(rows))
            tables.append(RuledTable(f"{self.prefix}-table-{index:04d}.png", cells, self.style(draw)))
        return tables
