"""The pictures of benchmark results: a bar for each ratio, or curves of the ratio over what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mode

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mmmoe.kernels.measure import Point, Result

BLUE, RED, ORANGE, INK, GREY, GRID = "#2458c5", "#c4321f", "#e08a00", "#1c2430", "#667085", "#e4e7ec"
CURVE_STYLES = ((BLUE, "o", 2.2), (ORANGE, "s", 1.5), (RED, "^", 1.5), (GREY, "D", 1.5))
"""Colour, marker and width of the curves, in the order in which they come."""
RATIO_TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CLOSE_TICKS = (0.8, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8)


def bars(title: str, results: Sequence[Result]) -> Figure:
    """Returns a bar for each result, with its range and bound."""
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(results)), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    axes.barh(places, [r.ratio for r in results], color=[BLUE if r.is_met else RED for r in results])
    for place, r in zip(places, results, strict=True):
        axes.plot([r.low, r.high], [place, place], color=INK, linewidth=1)
        if r.bound is not None:
            axes.plot([r.bound, r.bound], [place - 0.4, place + 0.4], color=ORANGE, linewidth=2)
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks(list(places), [f"{r.name}  /  {r.versus}" for r in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max((min(r.high, 4.0) for r in results), default=1.0) * 1.05)
    axes.set_xlabel("ratio; line: least and most of a round, orange: bound")
    axes.set_title(title, fontsize=9, loc="left")
    return figure


def curves(title: str, results: Sequence[Result]) -> Figure:
    """Returns a row of panels for each level and a column for each axis, of those results that are points."""
    placed = [(r.point, r) for r in results if r.point is not None]
    levels = list(dict.fromkeys(point.level for point, _ in placed))
    names = list(dict.fromkeys(point.curve for point, _ in placed))
    varied = list(dict.fromkeys(point.axis for point, _ in placed))
    usual = _usual([r for _, r in placed])
    size = (1.2 + 2.9 * len(varied), 1.6 + 2.8 * len(levels))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(levels), len(varied), squeeze=False, sharey="row", sharex="col")
    for row, level in enumerate(levels):
        for panel, axis in zip(panels[row], varied, strict=True):
            _panel(panel, [(p, r) for p, r in placed if (p.level, p.axis) == (level, axis)], names)
            panel.axvline(usual.get(axis, 1), color=GRID, linewidth=5, zorder=0)
        ratios = [
            r.ratio for p, r in placed if p.level == level
        ]  # not the bands: one slow round would flatten the rest
        bottom, top = min(0.92, 0.92 * min(ratios)), 1.15 * max(ratios)
        panels[row, 0].set_ylim(bottom, top)
        panels[row, 0].yaxis.set_major_locator(FixedLocator(CLOSE_TICKS if top < 8 else RATIO_TICKS))
        panels[row, 0].set_ylabel(f"{level}\ntime over {placed[0][1].versus}", fontsize=9, color=INK)
    for panel, axis in zip(panels[-1], varied, strict=True):
        panel.set_xlabel(axis, fontsize=9, color=INK)
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=width, markersize=5, label=name)
        for name, (colour, marker, width) in zip(names, CURVE_STYLES, strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9, frameon=False)
    around = ", ".join(f"{key} {value}" for key, value in usual.items())
    note = f"{title}\none varied around {around}; band: least and most of a round"
    figure.suptitle(note, fontsize=9, x=0.01, ha="left", color=INK)
    return figure


def _usual(results: Sequence[Result]) -> dict[str, int]:
    """Returns the sizes that most points have: what each curve leaves as it is."""
    sizes = [r.sizes or {} for r in results]
    return {key: mode(size[key] for size in sizes if key in size) for key in (sizes[0] if sizes else ())}


def _panel(panel: Axes, here: Sequence[tuple[Point, Result]], names: Sequence[str]) -> None:
    for name, (colour, marker, width) in zip(names, CURVE_STYLES, strict=False):
        mine = sorted(((p.at, r) for p, r in here if p.curve == name), key=lambda pair: pair[0])
        at, found = [x for x, _ in mine], [r for _, r in mine]
        panel.fill_between(at, [r.low for r in found], [r.high for r in found], color=colour, alpha=0.12, linewidth=0)
        panel.plot(at, [r.ratio for r in found], color=colour, marker=marker, linewidth=width, markersize=4.5)
    panel.axhline(1.0, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    values = sorted({p.at for p, _ in here})
    panel.set_xticks(values, [str(value) for value in values])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=INK, length=3)
    panel.spines[["top", "right"]].set_visible(False)
