"""The plots of a run: loss, learning rate, throughput, balance, expert load and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmmoe.report.bars import Bar, score_figure
from mmmoe.report.experts import COLLAPSED_SHARE, DEAD_SHARE, ExpertLoad, expert_load
from mmmoe.report.files import RunFiles, StageLog
from mmmoe.report.theme import DARK, LIGHT, Theme, panels, png, styled

WRITTEN_ROWS = 16
"""A heat map with more layers than this shows colours without numbers."""

NAMED_LINES = 6
"""A panel with more lines than this shows them as shades of one colour, from the first to the last."""


@dataclass(frozen=True)
class Plot:
    """One picture of the report in both themes."""

    name: str
    """File name without suffix."""
    section: str
    """training, experts or scores."""
    title: str
    caption: str
    """Tells what to look at."""
    light: bytes
    dark: bytes


def draw_plots(run: RunFiles) -> list[Plot]:
    """Returns every plot the run has data for."""
    plots: list[Plot] = []

    def add(name: str, section: str, title: str, caption: str, draw: Callable[[Theme], Figure]) -> None:
        images = []
        for theme in (LIGHT, DARK):
            with styled(theme):
                images.append(png(draw(theme)))
        plots.append(Plot(name, section, title, caption, *images))

    if run.scores:
        add("scores", "scores", "Scores", _SCORES, partial(_scores, run))
    if run.stages:
        add("loss", "training", "Loss by stage", _LOSS, partial(_loss, run.stages))
        sourced = [stage for stage in run.stages if len(stage.series_of("losses")) > 1]
        if sourced:
            add("loss_by_source", "training", "Loss by source", _SOURCES, partial(_tables, sourced, "losses"))
        add("learning_rate", "training", "Learning rate", _RATE, partial(_rates, run.stages))
        if any(stage.series("tokens_per_s")[0] for stage in run.stages):
            add("throughput", "training", "Throughput", _THROUGHPUT, partial(_throughput, run.stages))
    for stage in run.stages:
        load = expert_load(stage)
        if load is not None:
            name, title = f"expert_load_{stage.name}", f"Expert load, end of stage {stage.name}"
            add(name, "experts", title, _LOAD, partial(_load, load))
    balanced = [stage for stage in run.stages if stage.series_of("balance")]
    if balanced:
        add("balance", "experts", "Balance loss", _BALANCE, partial(_tables, balanced, "balance"))
    decided = [stage for stage in run.stages if stage.series_of("entropy")]
    if decided:
        add("entropy", "experts", "Router entropy", _ENTROPY, partial(_tables, decided, "entropy"))
    return plots


_SCORES = (
    "Share of right answers with its 95 % interval. What counts is the distance between the trained model and both the "
    "blind one (same model, grey picture: what the words alone give away) and the marks for guessing."
)
_LOSS = (
    "Cross-entropy per answer token; the thin line is every step, the thick one a running mean. A healthy stage falls "
    "fast, then flattens; a late rise means the learning rate is too high or the data repeats."
)
_SOURCES = (
    "The same loss split by the source of the sample (running mean). Look for a source that stops falling, or rises, "
    "while another one falls: that is a conflict between data sets."
)
_RATE = "Learning rate of each parameter group. Check the warm-up and that the curve ends where it should."
_THROUGHPUT = (
    "Text tokens a second. It should be level; a sagging line points at the machine, "
    "and dips at regular distances at checkpoint writes."
)
_LOAD = (
    "Share (%) of a layer's tokens that each expert gets over the last fifth of the stage: all data first, then each "
    "domain. An even first panel means the balance loss works; differences between the domain panels mean that "
    f"experts have specialised. Red frames mark experts under {DEAD_SHARE:.0%} or over {COLLAPSED_SHARE:.0%}."
)
_BALANCE = (
    "The unweighted term that keeps expert loads alike (running mean). It should settle near its floor within the "
    "first part of the stage; a jump means that a router is collapsing."
)

_ENTROPY = (
    "How undecided each layer's router is, in nats (running mean): the logarithm of the number of experts means "
    "that it has no preference yet, 0 that it is always sure. It should fall slowly; a sudden drop to 0 is a collapse."
)


def smooth(values: Sequence[float]) -> list[float]:
    """Returns the centred running mean over a twentieth of the curve, shortened at both ends."""
    half = max(len(values) // 40, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return [float(value) for value in (total[high] - total[low]) / (high - low)]


def _steps(axes: Axes, stage: StageLog) -> None:
    axes.set_title(stage.name)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.01)


def _loss(stages: Sequence[StageLog], theme: Theme) -> Figure:
    figure, axes = panels(len(stages))
    for at, (axis, stage) in enumerate(zip(axes, stages, strict=True)):
        _steps(axis, stage)
        steps, values = stage.series("loss")
        axis.plot(steps, values, color=theme.color(0), linewidth=0.7, alpha=0.35)
        axis.plot(steps, smooth(values), color=theme.color(0))
        if values:
            end = smooth(values)[-1]
            clear = {"facecolor": theme.background, "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
            spot: dict[str, Any] = {"xytext": (0, 14), "textcoords": "offset points", "ha": "right", "bbox": clear}
            axis.annotate(f"{end:.2f}", (steps[-1], end), weight="bold", **spot)
        if at == 0:
            axis.set_ylabel("loss")
    return figure


def _tables(stages: Sequence[StageLog], key: str, theme: Theme) -> Figure:
    names = list(dict.fromkeys(name for stage in stages for name in stage.series_of(key)))
    figure, axes = panels(len(stages), height=3.0)
    for axis, stage in zip(axes, stages, strict=True):
        _steps(axis, stage)
        for name, (steps, values) in stage.series_of(key).items():
            at = names.index(name)
            # Deep models have more layers than there are colours one can tell apart: there depth is a shade.
            color = theme.color(at) if len(names) <= NAMED_LINES else theme.colormap()(0.25 + 0.75 * at / len(names))
            label = name if len(names) <= NAMED_LINES or at in (0, len(names) - 1) else None
            axis.plot(steps, smooth(values), color=color, label=label)
    _legend(figure, axes)
    return figure


def _rates(stages: Sequence[StageLog], theme: Theme) -> Figure:
    figure, axes = panels(len(stages), height=2.4)
    for axis, stage in zip(axes, stages, strict=True):
        _steps(axis, stage)
        rows = [row for row in stage.rows if row.get("lr")]
        steps = [row["step"] for row in rows]
        curves = dict.fromkeys(zip(*(row["lr"] for row in rows), strict=False))
        for at, curve in enumerate(curves):
            axis.plot(steps, curve, color=theme.color(at))
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def _throughput(stages: Sequence[StageLog], theme: Theme) -> Figure:
    figure, axes = panels(len(stages), height=2.4)
    for at, (axis, stage) in enumerate(zip(axes, stages, strict=True)):
        _steps(axis, stage)
        steps, values = stage.series("tokens_per_s")
        axis.plot(steps, values, color=theme.color(2), linewidth=0.7, alpha=0.35)
        axis.plot(steps, smooth(values), color=theme.color(2))
        axis.set_ylim(bottom=0)
        if at == 0:
            axis.set_ylabel("tokens/s")
    return figure


def _load(load: ExpertLoad, theme: Theme) -> Figure:
    tables = {"all data": load.overall, **(load.shares if len(load.shares) > 1 else {})}
    rows = len(load.layers)
    height = min(1.15 + 0.34 * rows, 11.0)
    figure, axes = panels(len(tables), height=height, width=min(2.9 * len(tables), 8.6) if len(tables) < 3 else 8.6)
    top = max(float(np.nanmax(table)) for table in tables.values())
    for at, (axis, (domain, share_LE)) in enumerate(zip(axes, tables.items(), strict=True)):
        image = axis.imshow(share_LE, cmap=theme.colormap(), vmin=0.0, vmax=top, aspect="auto")
        axis.set_title(domain)
        axis.set_xticks(range(load.num_experts), [str(expert) for expert in range(load.num_experts)])
        axis.set_xlabel("expert")
        axis.set_yticks(range(rows), load.layers if at % 3 == 0 else [""] * rows)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        if rows <= WRITTEN_ROWS and load.num_experts <= 8:
            for (layer, expert), share in np.ndenumerate(share_LE):
                ink = theme.background if share > 0.55 * top else theme.ink
                label = "" if np.isnan(share) else f"{100 * share:.0f}"
                axis.text(expert, layer, label, ha="center", va="center", color=ink, fontsize=8)
        if domain == "all data":
            _frame_alarms(axis, load, theme)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), fraction=0.035, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _frame_alarms(axis: Axes, load: ExpertLoad, theme: Theme) -> None:
    if load.num_experts < 2:
        return
    low = min(DEAD_SHARE, 0.1 / load.num_experts)
    for (layer, expert), share in np.ndenumerate(load.overall):
        if share < low or share > COLLAPSED_SHARE:
            corner = (expert - 0.47, layer - 0.46)
            axis.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=theme.alarm, linewidth=1.8))


def _scores(run: RunFiles, theme: Theme) -> Figure:
    bars = [
        Bar(
            group=row["benchmark"] if row["benchmark"] == row["domain"] else f"{row['benchmark']}\n({row['domain']})",
            series=row["variant"],
            score=row["score"],
            low=row["low"],
            high=row["high"],
            chance=row["chance"],
            majority=row["majority"],
        )
        for row in run.scores
    ]
    return score_figure(bars, theme)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Puts one legend for all panels below them."""
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    if entries:
        columns = min(len(entries), 5)
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)
