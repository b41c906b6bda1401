"""Heat maps of shares of one: a row a benchmark, source or block, a column a vision expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mmmoe.report.load_map import WRITTEN_COLUMNS, WRITTEN_ROWS, write_shares
from mmmoe.report.router_counts import Array
from mmmoe.report.theme import Theme, panels

UPRIGHT_NAMES = 3
"""Names of more columns than this, or of several panels, lean, so that long ones do not run into each other."""


def share_map(
    tables: Mapping[str, Array], rows: Sequence[str], columns: Sequence[str], label: str, theme: Theme
) -> Figure:
    """Returns a panel for each table of shares (rows, columns), all on one scale; what is not known is left grey.

    Args:
        tables: by title.
        rows: names of the rows, the same in all panels.
        columns: names of the columns.
        label: of the colours.
        theme: colours.
    """
    beside = min(len(tables), 3)
    height = 1.3 + (0.3 if len(rows) <= WRITTEN_ROWS else 0.16) * len(rows)
    width = min(2.2 + beside * max(1.8, 0.55 * len(columns)), 8.6)
    figure, axes = panels(len(tables), height=height, width=width)
    colormap, norm = theme.colormap(), Normalize(0.0, 1.0)
    edges: dict[str, Any] = {"edgecolors": theme.background, "linewidth": 1.4}
    for at, (axis, (title, share_QE)) in enumerate(zip(axes, tables.items(), strict=True)):
        mesh = axis.pcolormesh(np.ma.masked_invalid(share_QE), cmap=colormap, norm=norm, **edges)
        _dress(axis, title, rows if at % beside == 0 else [""] * len(rows), columns, leans=len(tables) > 1)
        if len(rows) <= WRITTEN_ROWS and len(columns) <= WRITTEN_COLUMNS:
            write_shares(axis, share_QE, share_QE, colormap, norm, theme)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02, aspect=24)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


def _dress(axis: Axes, title: str, rows: Sequence[str], columns: Sequence[str], *, leans: bool) -> None:
    axis.set_title(title)
    axis.invert_yaxis()
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    lean = turned if leans or len(columns) > UPRIGHT_NAMES else {}
    axis.set_xticks([at + 0.5 for at in range(len(columns))], list(columns), **lean)
    axis.set_yticks([at + 0.5 for at in range(len(rows))], list(rows))
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
