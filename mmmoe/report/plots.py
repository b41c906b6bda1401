"""The plots of a run: scores, loss, learning rate, throughput, and what its routers and vision experts did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from mmmoe.report.bars import Bar, score_figure
from mmmoe.report.curves import lines, smooth, step_axis
from mmmoe.report.expert_plots import expert_plots
from mmmoe.report.files import RunFiles, StageLog
from mmmoe.report.picture import Plot, picture
from mmmoe.report.summary import is_bar
from mmmoe.report.theme import Theme, panels
from mmmoe.report.vision_plots import vision_plots


def draw_plots(run: RunFiles) -> list[Plot]:
    """Returns every plot the run has data for."""
    plots: list[Plot] = []

    def add(name: str, section: str, title: str, caption: str, draw: Callable[[Theme], Figure]) -> None:
        plots.append(picture(name, section, title, caption, draw))

    if any(is_bar(row) for row in run.scores):
        add("scores", "scores", "Scores", _SCORES, partial(_scores, run))
    if run.stages:
        add("loss", "training", "Loss by stage", _LOSS, partial(_loss, run.stages))
        sourced = [stage for stage in run.stages if len(stage.series_of("losses")) > 1]
        if sourced:
            add("loss_by_source", "training", "Loss by source", _SOURCES, partial(lines, sourced, "losses"))
        add("learning_rate", "training", "Learning rate", _RATE, partial(_rates, run.stages))
        asked = [stage for stage in run.stages if stage.series_of("evaluation")]
        if asked:
            add(
                "scores_while_training",
                "training",
                "Scores while training",
                _ASKED,
                partial(lines, asked, "evaluation"),
            )
        if any(stage.series("tokens_per_s")[0] for stage in run.stages):
            add("throughput", "training", "Throughput", _THROUGHPUT, partial(_throughput, run.stages))
    plots += expert_plots(run.stages)
    plots += vision_plots(run)
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
_ASKED = (
    "Score of the model as it was after that many steps, on the first questions of each benchmark, on the metric's own "
    "scale (a share is 0 to 1). Few questions make it jump; look for one that falls while the loss still does."
)
_RATE = "Learning rate of each parameter group. Check the warm-up and that the curve ends where it should."
_THROUGHPUT = (
    "Text tokens a second. It should be level; a sagging line points at the machine, "
    "and dips at regular distances at checkpoint writes."
)


def _loss(stages: Sequence[StageLog], theme: Theme) -> Figure:
    figure, axes = panels(len(stages))
    for at, (axis, stage) in enumerate(zip(axes, stages, strict=True)):
        step_axis(axis, stage)
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


def _rates(stages: Sequence[StageLog], theme: Theme) -> Figure:
    figure, axes = panels(len(stages), height=2.4)
    for axis, stage in zip(axes, stages, strict=True):
        step_axis(axis, stage)
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
        step_axis(axis, stage)
        steps, values = stage.series("tokens_per_s")
        axis.plot(steps, values, color=theme.color(2), linewidth=0.7, alpha=0.35)
        axis.plot(steps, smooth(values), color=theme.color(2))
        axis.set_ylim(bottom=0)
        if at == 0:
            axis.set_ylabel("tokens/s")
    return figure


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
        if is_bar(row)
    ]
    return score_figure(bars, theme)
