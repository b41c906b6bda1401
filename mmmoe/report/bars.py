"""Score bars in groups, with intervals and the marks of what guessing gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator

from mmmoe.report.theme import Theme

MOST_STANDING = 5
"""More groups than this lie below each other."""
CHANCE = (0, (4, 3))
MAJORITY = (0, (1, 1.6))


@dataclass(frozen=True)
class Bar:
    """One bar, as shares of one."""

    group: str
    series: str
    score: float
    low: float
    high: float
    chance: float
    majority: float
    points: tuple[float, ...] = ()
    """Single runs behind the bar, drawn as dots."""


def score_figure(bars: Sequence[Bar], theme: Theme) -> Figure:
    """Returns the figure: a group a benchmark, a colour a series, both in order of first appearance.

    A few groups stand as bars beside each other; many lie below each other as dots, so that their names can be read.
    """
    groups = list(dict.fromkeys(bar.group for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    draw = _standing_bars if len(groups) <= MOST_STANDING else _lying_dots
    figure = draw(bars, groups, series, theme)
    _legends(figure, series, theme)
    return figure


def _standing_bars(bars: Sequence[Bar], groups: list[str], series: list[str], theme: Theme) -> Figure:
    width = 0.78 / len(series)
    inches = min(max(2.2 + 0.55 * len(groups) * len(series), 7.2), 12.0)
    figure = Figure(figsize=(inches, 3.9), layout="constrained")
    axes = figure.subplots()
    for bar in bars:
        at = groups.index(bar.group) + (series.index(bar.series) - (len(series) - 1) / 2) * width
        color = theme.color(series.index(bar.series))
        score, low, high = 100 * bar.score, 100 * bar.low, 100 * bar.high
        axes.bar(at, score, width * 0.9, color=color, alpha=0.9)
        # An interval made by resampling need not hold the score itself to the last digit.
        error = [[max(score - low, 0.0)], [max(high - score, 0.0)]]
        axes.errorbar(at, score, error, fmt="none", ecolor=theme.ink, elinewidth=1.2, capsize=3, capthick=1.2)
        axes.plot([at] * len(bar.points), [100 * point for point in bar.points], "o", ms=3, color=theme.ink, alpha=0.6)
        above, clear = (at, max(high, score)), {"facecolor": theme.background, "edgecolor": "none", "pad": 0.6}
        axes.annotate(
            f"{score:.1f}", above, (0, 5), textcoords="offset points", ha="center", fontsize=8.5, bbox=clear, zorder=5
        )
    for at, group in enumerate(groups):
        first = next(bar for bar in bars if bar.group == group)
        span = [at - 0.44, at + 0.44]
        axes.plot(span, [100 * first.chance] * 2, color=theme.ink, linewidth=1.3, linestyle=CHANCE)
        axes.plot(span, [100 * first.majority] * 2, color=theme.ink, linewidth=1.3, linestyle=MAJORITY)
    axes.set_xticks(range(len(groups)), groups, color=theme.ink)
    axes.set_xlim(-0.55, len(groups) - 0.45)
    top = max(max(bar.high, bar.score, bar.majority) for bar in bars)
    axes.set_ylim(0, min(max(110 * top, 10.0), 108.0))
    axes.yaxis.set_major_locator(MultipleLocator(20 if top > 0.5 else 10))
    axes.set_ylabel("right answers, %")
    return figure


def _lying_dots(bars: Sequence[Bar], groups: list[str], series: list[str], theme: Theme) -> Figure:
    figure = Figure(figsize=(8.6, 1.3 + 0.36 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for at, group in enumerate(groups):
        first = next(bar for bar in bars if bar.group == group)
        axes.plot([100 * first.chance] * 2, [at - 0.36, at + 0.36], color=theme.ink, linewidth=1.3, linestyle=CHANCE)
        axes.plot(
            [100 * first.majority] * 2, [at - 0.36, at + 0.36], color=theme.ink, linewidth=1.3, linestyle=MAJORITY
        )
    for bar in bars:
        height = groups.index(bar.group) + (series.index(bar.series) - (len(series) - 1) / 2) * 0.2
        color = theme.color(series.index(bar.series))
        axes.plot([100 * bar.low, 100 * bar.high], [height, height], color=color, linewidth=2.2, alpha=0.55)
        axes.plot([100 * point for point in bar.points], [height] * len(bar.points), "o", ms=2.5, color=theme.muted)
        axes.plot(100 * bar.score, height, "o", ms=6, color=color)
    axes.set_yticks(range(len(groups)), [group.replace("\n", "  ") for group in groups], color=theme.ink)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(0, 102)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MultipleLocator(20))
    axes.set_xlabel("right answers, %")
    return figure


def _legends(figure: Figure, series: list[str], theme: Theme) -> None:
    """Names the series above the figure and the guessing marks below it."""
    handles = [Patch(color=theme.color(at), label=name) for at, name in enumerate(series)]
    # Legend columns are as wide as their longest label: at 9 points about a fifteenth of an inch a letter.
    widest = 0.75 + max(len(name) for name in series) / 15
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(min(len(handles), int(figure.get_figwidth() / widest)), 1)
    )
    marks = [
        Line2D([], [], color=theme.ink, linewidth=1.3, linestyle=CHANCE, label="chance"),
        Line2D([], [], color=theme.ink, linewidth=1.3, linestyle=MAJORITY, label="most frequent answer"),
    ]
    figure.legend(handles=marks, loc="outside lower left", ncols=2)
