"""Bar, line and pie charts of real tables, drawn with Pillow at twice the size and scaled down."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo.emoji import BACKGROUNDS, SIZE
from demo.tables import TRENDS, Series, Table, few_values, window
from PIL import Image, ImageDraw
from preparation.chance import generator

SCALE = 2
PALETTE = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 210, 50),
    "green": (50, 160, 70),
    "blue": (45, 105, 205),
    "purple": (130, 65, 170),
    "pink": (245, 130, 185),
    "brown": (130, 82, 45),
}
INK = (50, 50, 50)
LEFT, RIGHT, TOP, BOTTOM = 8, 92, 5, 88


@dataclass(frozen=True)
class BarChart:
    """Coloured bars; the tallest stands clear of the others."""

    path: str
    values: Series
    colours: tuple[str, ...]
    background: tuple[int, int, int]

    @property
    def tallest(self) -> str:
        """The colour of the tallest bar."""
        return self.colours[self.values.index(max(self.values))]

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas, pen = board(self.background)
        axes(pen)
        slot = (RIGHT - LEFT) / len(self.values)
        gap = max(2.0, 0.18 * slot)
        for place, (value, colour) in enumerate(zip(self.values, self.colours, strict=True)):
            left = LEFT + place * slot
            top = BOTTOM - (BOTTOM - TOP) * value / max(self.values)
            pen.rectangle(scaled(left + gap, top, left + slot - gap / 2, BOTTOM - 1), PALETTE[colour])
        return finish(canvas)


@dataclass(frozen=True)
class LineChart:
    """One line over an axis that starts at zero."""

    path: str
    values: Series
    trend: str
    colour: str
    background: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas, pen = board(self.background)
        axes(pen)
        top, step = 1.1 * max(self.values), (RIGHT - LEFT - 4) / (len(self.values) - 1)
        points = [
            (SCALE * (LEFT + 3 + place * step), SCALE * (BOTTOM - (BOTTOM - TOP) * value / top))
            for place, value in enumerate(self.values)
        ]
        pen.line(points, PALETTE[self.colour], 3 * SCALE, joint="curve")
        return finish(canvas)


@dataclass(frozen=True)
class PieChart:
    """Coloured slices of a circle."""

    path: str
    values: Series
    colours: tuple[str, ...]
    background: tuple[int, int, int]

    @property
    def largest(self) -> str:
        """The colour of the largest slice."""
        return self.colours[self.values.index(max(self.values))]

    def draw(self) -> Image.Image:
        """Returns the picture."""
        canvas, pen = board(self.background)
        start = -90.0
        for value, colour in zip(self.values, self.colours, strict=True):
            sweep = 360 * value / sum(self.values)
            pen.pieslice(scaled(7, 7, 89, 89), start, start + sweep, PALETTE[colour], outline=self.background, width=2)
            start += sweep
        return finish(canvas)


def board(background: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an empty picture at twice the size, and its pen."""
    canvas = Image.new("RGB", (SCALE * SIZE, SCALE * SIZE), background)
    return canvas, ImageDraw.Draw(canvas)


def scaled(*numbers: float) -> tuple[float, ...]:
    """Returns coordinates of the doubled picture."""
    return tuple(SCALE * number for number in numbers)


def axes(pen: ImageDraw.ImageDraw) -> None:
    """Draws the two axes and the ticks of the upright one."""
    pen.line(scaled(LEFT, TOP - 2, LEFT, BOTTOM), INK, SCALE)
    pen.line(scaled(LEFT, BOTTOM, RIGHT + 2, BOTTOM), INK, SCALE)
    for tick in range(5):
        height = BOTTOM - tick * (BOTTOM - TOP) / 4
        pen.line(scaled(LEFT - 3, height, LEFT, height), INK, SCALE)


def finish(canvas: Image.Image) -> Image.Image:
    """Returns the picture at its final size, smoothed."""
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def plan_bars(tables: list[Table], number: int, prefix: str) -> list[BarChart]:
    """Returns bar charts of two to six bars; each number and each colour of the tallest equally frequent."""
    charts = []
    for index in range(number):
        draw = generator("bars", prefix, index)
        values = few_values(tables, 2 + index % 5, draw)
        colours = paint(values, index // 5, draw)
        charts.append(BarChart(f"{prefix}-bar-{index:04d}.png", values, colours, draw.choice(BACKGROUNDS)))
    return charts


def plan_lines(tables: list[Table], number: int, prefix: str) -> list[LineChart]:
    """Returns line charts; the three trends equally frequent."""
    charts = []
    for index in range(number):
        draw = generator("lines", prefix, index)
        trend = TRENDS[index % len(TRENDS)]
        values, colour = window(tables, trend, draw), draw.choice(list(PALETTE))
        charts.append(LineChart(f"{prefix}-line-{index:04d}.png", values, trend, colour, draw.choice(BACKGROUNDS)))
    return charts


def plan_pies(tables: list[Table], number: int, prefix: str) -> list[PieChart]:
    """Returns pie charts of two to five slices."""
    charts = []
    for index in range(number):
        draw = generator("pies", prefix, index)
        values = few_values(tables, 2 + index % 4, draw)
        colours = paint(values, index // 4, draw)
        charts.append(PieChart(f"{prefix}-pie-{index:04d}.png", values, colours, draw.choice(BACKGROUNDS)))
    return charts


def paint(values: Series, turn: int, draw: random.Random) -> tuple[str, ...]:
    """Returns a colour for each value, all different; the largest gets the colours of the palette in turn."""
    names = list(PALETTE)
    first = names[turn % len(names)]
    others = draw.sample([name for name in names if name != first], len(values) - 1)
    largest = values.index(max(values))
    return (*others[:largest], first, *others[largest:])
