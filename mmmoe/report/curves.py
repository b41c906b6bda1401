"""Curves over the steps of a stage: a few as lines, those of many layers as a map with a row a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmmoe.report.files import StageLog
from mmmoe.report.router_counts import Array
from mmmoe.report.theme import Theme, panels

NAMED_LINES = 6
"""A panel with more lines than this shows them as shades of one colour, from the first to the last."""
MAP_COLUMNS = 120
"""Columns of a map at most; each is the mean of the steps that fall into it."""


def smooth(values: Sequence[float]) -> list[float]:
    """Returns the centred running mean over a twentieth of the curve, shortened at both ends."""
    half = max(len(values) // 40, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return [float(value) for value in (total[high] - total[low]) / (high - low)]


def step_axis(axes: Axes, stage: StageLog) -> None:
    """Titles a panel with its stage and counts steps along it."""
    axes.set_title(stage.name)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.01)


def lines(stages: Sequence[StageLog], key: str, theme: Theme, *, mark: float | None = None) -> Figure:
    """Returns a panel a stage with a smoothed line for each name in a table of numbers.

    Args:
        stages: those that have the key.
        key: of the step's line.
        theme: colours.
        mark: a value to draw a dashed line at, which the panels then include.
    """
    names = list(dict.fromkeys(name for stage in stages for name in stage.series_of(key)))
    figure, axes = panels(len(stages), height=3.0)
    for axis, stage in zip(axes, stages, strict=True):
        step_axis(axis, stage)
        if mark is not None:
            axis.axhline(mark, color=theme.muted, linewidth=1.0, linestyle=(0, (4, 3)))
        for name, (steps, values) in stage.series_of(key).items():
            at = names.index(name)
            color = theme.color(at) if len(names) <= NAMED_LINES else theme.colormap()(0.25 + 0.75 * at / len(names))
            label = name if len(names) <= NAMED_LINES or at in (0, len(names) - 1) else None
            axis.plot(steps, smooth(values), color=color, label=label)
    legend(figure, axes)
    return figure


@dataclass(frozen=True)
class Scale:
    """What the colours of a map stand for."""

    label: str
    low: float | None = None
    """Value at one end; the smallest that occurs where it is left out or lies above that."""
    high: float | None = None
    """Value at the other, alike."""
    is_reversed: bool = False
    """Whether the low values have the strong colours."""

    def bounds(self, values: Array) -> tuple[float, float]:
        """Returns the ends of the scale for these values."""
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return min(low, low if self.low is None else self.low), max(high, high if self.high is None else self.high)


def layer_map(stages: Sequence[StageLog], key: str, scale: Scale, theme: Theme) -> Figure:
    """Returns a panel a stage with a row a layer, from the first on top to the last, and time from left to right."""
    maps = [_binned(stage, key) for stage in stages]
    low, high = scale.bounds(np.concatenate([value_LX.ravel() for _, value_LX in maps]))
    colormap = theme.colormap().reversed() if scale.is_reversed else theme.colormap()
    rows = max(len(names) for names, _ in maps)
    figure, axes = panels(len(stages), height=min(1.1 + 0.13 * rows, 8.0))
    for at, (axis, stage, (names, value_LX)) in enumerate(zip(axes, stages, maps, strict=True)):
        step_axis(axis, stage)
        extent = (stage.rows[0]["step"], stage.rows[-1]["step"] + 1, len(names) - 0.5, -0.5)
        look: dict[str, Any] = {
            "cmap": colormap,
            "vmin": low,
            "vmax": high,
            "aspect": "auto",
            "interpolation": "nearest",
        }
        image = axis.imshow(value_LX, extent=extent, **look)
        ticks = range(0, len(names), max(1, len(names) // 8))
        axis.set_yticks(list(ticks), [names[tick].removeprefix("layer ") for tick in ticks])
        axis.set_ylabel("layer" if at % 3 == 0 else "")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=28)
    bar.set_label(scale.label)
    bar.outline.set_visible(False)
    return figure


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Puts one legend for all panels below them."""
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    if entries:
        columns = min(len(entries), 5)
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def _binned(stage: StageLog, key: str) -> tuple[list[str], Array]:
    """Returns the names and their values in at most MAP_COLUMNS columns; NaN where none falls into one."""
    series = stage.series_of(key)
    first, last = stage.rows[0]["step"], stage.rows[-1]["step"]
    columns = min(MAP_COLUMNS, last - first + 1)
    rows = []
    for steps, values in series.values():
        at = (np.asarray(steps) - first) * columns // (last - first + 1)
        total, count = (np.bincount(at, weight, minlength=columns) for weight in (np.asarray(values), None))
        rows.append(np.divide(total, count, out=np.full(columns, np.nan), where=count > 0))
    return list(series), np.array(rows)
