"""The plots of vision experts: who looks at what, how they are weighed, what they cost, and what routing is worth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mmmoe.report.bars import Bar, score_figure
from mmmoe.report.files import Row, RunFiles
from mmmoe.report.picture import Plot, picture
from mmmoe.report.share_map import share_map
from mmmoe.report.summary import is_bar
from mmmoe.report.vision import LABELS, ExpertShares, TrainedExperts, chosen_experts, trained_experts
from mmmoe.report.vision_cost import VisionCost, cost_figure

SECTION = "vision"
_CHOSEN = (
    "Share of the questions that each expert looks at, in %; a row adds up to the mean number of experts. Rows that "
    "differ mean that experts are chosen by the question; a column that is dark throughout is an expert that is always "
    "asked, whatever it costs. "
)
_LABELLED = (
    "Labels are the experts that lower the loss of the right answer, of the questions that were labelled: where the "
    "model's own naming looks like them, it has learned what helps."
)
_ROUTED = (
    "Share of each source's images that an expert looked at in the last fifth of stage {stage}, in %: what the adapter "
    "learned from. A column of zeros is an expert whose cross-attention was not trained."
)
_GATES = (
    "Mean weight of each expert in each block of the adapter, in %, over the images that an expert looked at, in the "
    "last fifth of stage {stage}; an expert that is not routed to an image counts as 0 there. Compare with the shares "
    "above: an expert that is routed often and weighs little costs more than it gives. Blocks that differ read "
    "different experts."
)
_COST = (
    "{clock} on {machine}, {date}, pictures to tokens, nothing remembered. Towers that are not routed do not run: each "
    "step to the right adds a tower (experts in turn, so that all count alike) and its cross-attentions. Dashed: all "
    "experts on every image."
)
_ROUTINGS = (
    "Right answers of the trained model by the way that experts are chosen: as the run declares, and as in other "
    "evaluations of it (`mmmoe eval RUN evaluation.routing=random`). What the model names should beat random "
    "experts and none; labels, which know the answer, are the best that can be hoped for."
)


def vision_plots(run: RunFiles) -> list[Plot]:
    """Returns every plot of vision experts that the run has files for; none for a model without them."""
    plots = []
    chosen = chosen_experts(run)
    if chosen is not None:
        caption = _CHOSEN + (_LABELLED if LABELS in chosen.panels else "")
        title = f"Experts by benchmark, routing {run.routing}"
        plots.append(_map("vision_chosen", title, caption, chosen, "share of questions"))
    trained = trained_experts(run.stages)
    if trained is not None:
        plots += _training_plots(trained)
    if any(run.other_routings.values()) and routing_bars(run):
        draw = partial(score_figure, routing_bars(run))
        plots.append(picture("vision_routings", SECTION, "Scores by routing", _ROUTINGS, draw))
    for number, found in enumerate(run.costs, 1):
        cost = VisionCost.read(found)
        name = "vision_cost" if number == 1 else f"vision_cost_{number}"
        caption = _COST.format(clock=cost.clock, machine=cost.machine, date=cost.date)
        plots.append(picture(name, SECTION, "What experts cost", caption, partial(cost_figure, cost)))
    return plots


def _training_plots(trained: TrainedExperts) -> list[Plot]:
    end = f"end of stage {trained.stage}"
    caption = _ROUTED.format(stage=trained.stage)
    plots = [_map("vision_routed", f"Experts in training, {end}", caption, trained.share, "share of images")]
    if trained.gates:
        blocks = [f"block {number}" for number in range(1, 1 + len(next(iter(trained.gates.values()))))]
        draw = partial(share_map, trained.gates, blocks, trained.experts, "mean weight")
        title = f"Weights of experts by source, {end}"
        plots.append(picture("vision_gates", SECTION, title, _GATES.format(stage=trained.stage), draw))
    return plots


def _map(name: str, title: str, caption: str, shares: ExpertShares, label: str) -> Plot:
    return picture(name, SECTION, title, caption, partial(share_map, shares.panels, shares.rows, shares.experts, label))


def routing_bars(run: RunFiles) -> list[Bar]:
    """Returns a bar a benchmark and way to choose experts, the run's own first, of benchmarks that have several."""
    ways: dict[str, Sequence[Row]] = {run.routing: run.scores, **run.other_routings}
    several = {row["benchmark"] for rows in run.other_routings.values() for row in rows}
    named = {
        "predicted": "named by the model",
        "none": "no experts",
        "random": "random experts",
        "random_one": "one at random",
        "all": "all experts",
    }
    return [
        Bar(
            group=row["benchmark"],
            series=named.get(way, way),
            score=row["score"],
            low=row["low"],
            high=row["high"],
            chance=row["chance"],
            majority=row["majority"],
        )
        for way, rows in ways.items()
        for row in rows
        if row["variant"] == "trained" and row["benchmark"] in several and is_bar(row)
    ]
