"""The heat maps of expert load: a row a layer, a column an expert, colour by how far it is from an equal share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmmoe.report.alarms import find_alarms
from mmmoe.report.experts import ExpertLoad
from mmmoe.report.router_counts import Array
from mmmoe.report.theme import Theme, panels

WRITTEN_ROWS, WRITTEN_COLUMNS = 16, 8
"""A map with more layers or experts than this shows colours without figures."""
WHOLE = "all data"
"""Title of the panel that alarms are framed in where a layer has one router."""


def load_map(load: ExpertLoad, tables: Mapping[str, Array], theme: Theme) -> Figure:
    """Returns a panel for each table of shares (L, E), all on one scale; absent experts are left out."""
    rows, is_written, columns = len(load.layers), is_legible(tables), _columns(tables)
    height = 1.05 + (0.3 if rows <= WRITTEN_ROWS else 0.14) * rows
    width = min(2.9 * len(tables), 8.6) if len(tables) < 3 else 8.6
    figure, axes = panels(len(tables), height=height, width=width, columns=columns)
    times = {name: share_LE * np.isfinite(share_LE).sum(axis=1, keepdims=True) for name, share_LE in tables.items()}
    norm = TwoSlopeNorm(1.0, 0.0, max(2.0, *(float(np.nanmax(times_LE)) for times_LE in times.values())))
    colormap = theme.diverging()
    for at, (axis, (name, share_LE)) in enumerate(zip(axes, tables.items(), strict=True)):
        masked = np.ma.masked_invalid(times[name])
        edges: dict[str, Any] = {"edgecolors": theme.background, "linewidth": 1.4 if is_written else 0.5}
        mesh = axis.pcolormesh(masked, cmap=colormap, norm=norm, **edges)
        _dress(axis, load, name, share_LE.shape[1], is_first=at % columns == 0)
        if is_written:
            write_shares(axis, share_LE, times[name], colormap, norm, theme)
        _frame_alarms(axis, load, name, theme)
    # A bar of the same size in inches whatever the number of panels: up to 3 high, an eighth wide.
    full = figure.get_figheight()
    anchor: dict[str, Any] = {"shrink": 3.0 / full, "anchor": (0.0, 1.0)} if full > 3.0 else {}
    size: dict[str, Any] = {"fraction": 0.3 / figure.get_figwidth(), "aspect": 0.8 * min(full, 3.0) * 8}
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, **size, **anchor)
    bar.set_label("times an equal share")
    bar.set_ticks([0, 0.5, 1, *_upper_ticks(float(norm.vmax or 2.0))])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return figure


def is_legible(tables: Mapping[str, Array]) -> bool:
    """Says whether there is room for figures in the cells."""
    rows, experts = max(table.shape for table in tables.values())
    return rows <= WRITTEN_ROWS and experts <= WRITTEN_COLUMNS and len(tables) <= 6


def _columns(tables: Mapping[str, Array]) -> int:
    """Returns how many panels stand beside each other, so that rows are full and figures have room."""
    if len(tables) == 4 and is_legible(tables) and next(iter(tables.values())).shape[1] > 5:
        return 2
    return 3 if len(tables) in (1, 2, 3, 5, 6, 9) else 4


def _upper_ticks(top: float) -> list[float]:
    """Returns up to three round numbers above 1, the last one near the top."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 1e9) if (top - 1) / step <= 3.5)
    return [1 + step * n for n in range(1, int((top - 1) / step) + 1)]


def _dress(axis: Axes, load: ExpertLoad, title: str, experts: int, *, is_first: bool) -> None:
    rows = len(load.layers)
    axis.set_title(title)
    axis.invert_yaxis()
    shown = range(0, experts, max(1, -(-experts // 8)))
    axis.set_xticks([expert + 0.5 for expert in shown], [str(expert) for expert in shown])
    axis.set_xlabel("expert")
    ticks = range(0, rows, 1 if rows <= WRITTEN_ROWS else max(1, rows // 8))
    axis.set_yticks(
        [row + 0.5 for row in ticks], [str(load.layers[row]) for row in ticks] if is_first else [""] * len(ticks)
    )
    axis.set_ylabel("layer" if is_first else "")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def write_shares(
    axis: Axes, share_LE: Array, times_LE: Array, colormap: Colormap, norm: Normalize, theme: Theme
) -> None:
    """Writes each share in per cent, in whichever of the theme's two colours stands out more on the cell's own."""
    inks = [theme.ink, theme.background]
    for (layer, expert), share in np.ndenumerate(share_LE):
        if np.isnan(share):
            continue
        ground = _luminance(colormap(norm(times_LE[layer, expert])))
        ink = max(inks, key=lambda one: abs(_luminance(to_rgb(one)) - ground))
        spot: dict[str, Any] = {"ha": "center", "va": "center", "color": ink, "fontsize": 8}
        axis.text(expert + 0.5, layer + 0.5, f"{100 * share:.0f}", **spot)


def _luminance(color: tuple[float, ...]) -> float:
    return float(np.dot(np.asarray(color[:3]) ** 2.2, (0.2126, 0.7152, 0.0722)) ** (1 / 2.2))


def _frame_alarms(axis: Axes, load: ExpertLoad, title: str, theme: Theme) -> None:
    for alarm in find_alarms(load.routers):
        part, row = load.cell(alarm.router)
        if title != (part or WHOLE):
            continue
        for expert in alarm.experts:
            frame: dict[str, Any] = {
                "fill": False,
                "edgecolor": theme.alarm,
                "linewidth": 2.0,
                "zorder": 3,
                "clip_on": False,
            }
            axis.add_patch(Rectangle((expert + 0.04, row + 0.06), 0.92, 0.88, **frame))
