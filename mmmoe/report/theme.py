"""How plots look: two colour sets, one light and one dark, and the way a figure becomes a PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a plot."""

    name: str
    background: str
    ink: str
    muted: str
    grid: str
    alarm: str
    series: tuple[str, ...]
    """In order of use; neighbours differ in lightness too, so they stay apart without colour vision."""
    heat: tuple[str, ...]
    """From little to much."""
    around: tuple[str, ...]
    """From nothing over an equal share in the middle to much more."""

    def color(self, at: int) -> str:
        """Returns the colour of the at-th series."""
        return self.series[at % len(self.series)]

    def colormap(self) -> Colormap:
        """Returns the one-hue scale of what grows from little to much."""
        return LinearSegmentedColormap.from_list("heat", list(self.heat)).with_extremes(bad=self.grid)

    def diverging(self) -> Colormap:
        """Returns the two-hue scale around an equal share; what is absent is left blank."""
        return LinearSegmentedColormap.from_list("around", list(self.around)).with_extremes(bad=self.background)


LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#1c2430",
    muted="#667085",
    grid="#e6e9ef",
    alarm="#c4321f",
    series=("#2458c5", "#e08a00", "#0b8f6a", "#a3328a", "#5c6675", "#c4321f"),
    heat=("#f4f7fd", "#a9c4f2", "#4a7fdb", "#16398c"),
    around=("#d9822b", "#f0c48f", "#eff2f8", "#8db0ee", "#16398c"),
)
DARK = Theme(
    name="dark",
    background="#171b22",
    ink="#e7eaf0",
    muted="#98a2b3",
    grid="#2b313c",
    alarm="#ff4f4f",
    series=("#78a9ff", "#f5b041", "#43d0a2", "#e68ad1", "#aab2bf", "#ff8a75"),
    heat=("#1e2530", "#274b8c", "#4f8bf0", "#cfe0ff"),
    around=("#f0a04b", "#80552a", "#262d39", "#33609f", "#a9cbff"),
)


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Inside, new figures take the theme's colours; matplotlib's own settings are left as they were."""
    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
    with mpl.rc_context(settings):
        yield


def panels(count: int, *, height: float = 2.7, width: float = 8.6, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Returns a figure with `count` panels, up to so many columns beside each other."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG without date or software fields, so that equal plots are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()
