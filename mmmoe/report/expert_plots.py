"""The plots of routed experts: who is chosen, by layer, source and modality, and the losses that see to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmmoe.report.curves import NAMED_LINES, Scale, layer_map, legend, lines
from mmmoe.report.experts import ExpertLoad, expert_load, split
from mmmoe.report.files import StageLog
from mmmoe.report.load_map import WHOLE, is_legible, load_map
from mmmoe.report.picture import Plot, picture
from mmmoe.report.router_counts import Array
from mmmoe.report.theme import Theme, panels

_FIGURES = "Figures are shares of the choices in %. "
_COLOUR = (
    "Colour is the load over an equal share, so that layers with different numbers of experts compare: faint "
    "is an equal share, blue more, amber less. Last fifth of the stage. "
)
_FRAMES = "Red frames mark dead experts and those a router has collapsed onto (the rule stands below)."
_LOAD = (
    "A faint first panel means that the balance loss works; modalities that differ mean that experts have specialised "
    f"in one. {_FRAMES}"
)
_PARTS = (
    "A panel for the routers of each part of a layer. Look for a column that stands out, one expert preferred in all "
    f"layers, and for rows: layers that lean on few experts. {_FRAMES}"
)
_MODALITIES = "Panels that differ mean that experts have specialised in a modality."
_SOURCES = (
    "Panels that differ mean that experts have specialised in a kind of data, which is what they are for where data "
    "sets are in conflict; panels that are all alike mean that one expert would do."
)
_SUMMED = " The routers of a layer are added up here."
_SPLIT = (
    "Largest total variation between the loads of two sources, and of two modalities, by layer. 0: all use the layer's "
    "experts alike; 1: some two have no expert in common. Above the first layers it should rise beyond the noise of "
    "a few hundredths, or the routers have learned nothing about the data."
)
_BALANCE = (
    "The unweighted term that keeps expert loads alike: 1 means even, whatever the number of experts, and E / k that "
    "all positions take the same k of E experts (3 for one of three). It should come near 1 early in the stage and "
    "stay, perhaps a little below; a rise is a collapse in the making."
)
_Z = (
    "The unweighted mean squared logsumexp of the routers' logits. It should be level or fall; one that keeps rising "
    "means logits that grow without bound, and routers that will soon be unable to change their minds."
)
_ENTROPY = (
    "How undecided each layer's routers are, as a share of the largest possible: 1 means no preference among the "
    "experts, 0 always sure. It should fall slowly from near 1; a sudden fall to 0 is a collapse. A layer that stays "
    "at 1 routes by next to nothing; with selection top1, where the balance loss alone moves routers, that is to be "
    "expected."
)
_NAMES = {"balance": "Balance loss", "z": "Z-loss", "entropy": "Router entropy"}
_CAPTIONS = {"balance": _BALANCE, "z": _Z, "entropy": _ENTROPY}
_ROWS = {
    "balance": "A row a layer, time from left to right; the stronger the colour, the less even.",
    "z": "A row a layer, time from left to right.",
    "entropy": "A row a layer, time from left to right; the stronger the colour, the surer the routers.",
}
_SCALES = {
    "balance": Scale("times even", low=1.0, high=1.5),
    "z": Scale("unweighted term", low=0.0),
    "entropy": Scale("share of the largest", low=0.0, high=1.0, is_reversed=True),
}


def expert_plots(stages: Sequence[StageLog]) -> list[Plot]:
    """Returns every plot that the stages' routers give something for."""
    plots = []
    for stage in stages:
        load = expert_load(stage)
        if load is not None:
            plots += _load_plots(load)
    for key in sorted({key for stage in stages for row in (stage.rows[0], stage.rows[-1]) for key in row}):
        if found := re.fullmatch(r"(balance|z)(?:_(\d+))?", key):
            name = _NAMES[found[1]] + (f", adapter {found[2]}" if found[2] else "")
            plots.append(_by_layer(stages, key, name))
    if any(stage.series_of("entropy") for stage in stages):
        plots.append(_by_layer(stages, "entropy", _NAMES["entropy"]))
    return plots


def _load_plots(load: ExpertLoad) -> list[Plot]:
    name, end = f"expert_load_{load.stage}", f"end of stage {load.stage}"
    modalities = load.by_modality if len(load.by_modality) > 1 else {}
    sources = load.by_source if len(load.by_source) > 1 else {}
    summed = _SUMMED if load.by_part else ""
    if load.by_part:
        plots = [_map(load, load.by_part, name, f"Expert load by router, {end}", _PARTS)]
        if modalities:
            title = f"Expert load by modality, {end}"
            plots.append(_map(load, modalities, f"{name}_by_modality", title, _MODALITIES + summed))
    else:
        plots = [_map(load, {WHOLE: load.overall, **modalities}, name, f"Expert load, {end}", _LOAD)]
    if sources:
        plots.append(_map(load, sources, f"{name}_by_source", f"Expert load by source, {end}", _SOURCES + summed))
    splits = splits_of(load)
    if splits:
        draw = partial(_split_figure, load, splits)
        title = f"Split of the load, {end}"
        plots.append(picture(f"expert_split_{load.stage}", "experts", title, _SPLIT + summed, draw))
    return plots


def _map(load: ExpertLoad, tables: Mapping[str, Array], name: str, title: str, caption: str) -> Plot:
    is_first = name == f"expert_load_{load.stage}"
    figures = _FIGURES if is_legible(tables) else ""
    read = figures + _COLOUR if is_first else "Colours as above. "
    return picture(name, "experts", title, read + caption, partial(load_map, load, tables))


def splits_of(load: ExpertLoad) -> dict[str, Array]:
    """Returns the split by layer, between sources and between modalities, as far as there are several."""
    found = {"between sources": split(load.by_source), "between modalities": split(load.by_modality)}
    return {name: split_L for name, split_L in found.items() if split_L is not None}


def _by_layer(stages: Sequence[StageLog], key: str, title: str) -> Plot:
    """Returns lines for a few layers and a map for many."""
    having = [stage for stage in stages if stage.series_of(key)]
    kind = key.split("_")[0]
    caption, mark = _CAPTIONS[kind], {"balance": 1.0, "entropy": 1.0}.get(kind)
    if max(len(stage.series_of(key)) for stage in having) <= NAMED_LINES:
        return picture(key, "experts", title, f"{caption} Running means.", partial(lines, having, key, mark=mark))
    draw = partial(layer_map, having, key, _SCALES[kind])
    return picture(key, "experts", title, f"{caption} {_ROWS[kind]}", draw)


def _split_figure(load: ExpertLoad, splits: Mapping[str, Array], theme: Theme) -> Figure:
    figure, (axis,) = panels(1, height=2.6)
    at = np.arange(len(load.layers))
    for number, (name, split_L) in enumerate(splits.items()):
        axis.plot(at, split_L, color=theme.color(number), marker="o", markersize=4.5, label=name, clip_on=False)
    _layer_axis(axis, load)
    axis.set_ylim(0, max(0.2, 1.1 * max(float(split_L.max()) for split_L in splits.values())))
    axis.set_ylabel("total variation")
    legend(figure, [axis])
    return figure


def _layer_axis(axis: Axes, load: ExpertLoad) -> None:
    axis.set_xlabel("layer")
    axis.set_xlim(-0.5, len(load.layers) - 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axis.xaxis.set_major_formatter(lambda x, _: f"{load.layers[round(x)]}" if 0 <= x < len(load.layers) else "")
