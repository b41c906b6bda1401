"""What vision experts cost: milliseconds of each tower, and of all that runs by the number of routed experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmmoe.report.curves import legend
from mmmoe.report.files import Row
from mmmoe.report.theme import Theme


@dataclass(frozen=True)
class TowerCost:
    """One tower on one image."""

    name: str
    pixels: int
    """Side of its input."""
    ms: float


@dataclass(frozen=True)
class RoutedCost:
    """An image with so many routed experts."""

    level: str
    """One image by itself, or one of a batch."""
    routed: int
    parts: dict[str, float]
    """Milliseconds an image, by what they are spent on."""
    ms: float
    """All of it; medians of parts add up to it but for a little."""
    ratio: float
    """Over the same with all experts."""


@dataclass(frozen=True)
class VisionCost:
    """What a file of `mmmoe bench vision_experts` says."""

    machine: str
    date: str
    clock: str
    towers: tuple[TowerCost, ...]
    routed: tuple[RoutedCost, ...]
    """By level, from no expert to all."""

    @classmethod
    def read(cls, found: Row) -> VisionCost:
        """Returns the costs in a file's content."""
        towers, parts, whole = [], dict[tuple[str, int], dict[str, float]](), dict[str, Row]()
        for row in found["results"]:
            point, sizes = row.get("point"), row.get("sizes") or {}
            if point is not None:
                parts.setdefault((point["level"], point["at"]), {})[point["curve"]] = row["value"]
            elif "pixels" in sizes:
                towers.append(TowerCost(row["name"], sizes["pixels"], row["value"]))
            elif "routed" in sizes:
                whole[row["name"]] = row
        routed = []
        for (level, number), spent in parts.items():
            row = whole[f"{level}, {number} routed"]
            routed.append(RoutedCost(level, number, spent, row["value"], row["ratio"]))
        return cls(found["machine"], found["date"], found["clock"], tuple(towers), tuple(routed))


def cost_figure(cost: VisionCost, theme: Theme) -> Figure:
    """Returns the towers as bars, and for each level the parts of an image's time by the number of routed experts."""
    levels = list(dict.fromkeys(one.level for one in cost.routed))
    figure = Figure(figsize=(3.0 + 2.9 * len(levels), 3.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(levels), squeeze=False, width_ratios=[1.05, *[1.0] * len(levels)])[0]
    _towers(first, cost.towers, theme)
    for at, (axis, level) in enumerate(zip(others, levels, strict=True)):
        _stack(axis, level, [one for one in cost.routed if one.level == level], theme)
        axis.set_ylabel("ms an image" if at == 0 else "")
    legend(figure, others)
    return figure


def _towers(axis: Axes, towers: Sequence[TowerCost], theme: Theme) -> None:
    axis.barh(range(len(towers)), [tower.ms for tower in towers], color=theme.color(0), alpha=0.9)
    for at, tower in enumerate(towers):
        spot: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axis.annotate(f"{tower.ms:.3g}", (tower.ms, at), **spot)
    axis.set_yticks(range(len(towers)), [f"{tower.name}, {tower.pixels} px" for tower in towers], color=theme.ink)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * max((tower.ms for tower in towers), default=1.0))
    axis.grid(visible=False)
    axis.set_title("each tower")
    axis.set_xlabel("ms an image")


def _stack(axis: Axes, level: str, costs: Sequence[RoutedCost], theme: Theme) -> None:
    places = [cost.routed for cost in costs]
    below = [0.0] * len(costs)
    for at, part in enumerate(costs[0].parts):
        spent = [cost.parts[part] for cost in costs]
        axis.bar(places, spent, 0.72, bottom=below, color=theme.color(at), alpha=0.9, label=part)
        below = [low + more for low, more in zip(below, spent, strict=True)]
    axis.axhline(below[-1], color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)), label="all experts")
    for place, cost in zip(places[:-1], costs, strict=False):
        spot: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axis.annotate(f"{100 * cost.ratio:.0f} %", (place, cost.ms), **spot)
    axis.set_xticks(places)
    axis.set_ylim(0, 1.12 * below[-1])
    axis.set_title(level)
    axis.set_xlabel("experts routed")
