"""Which expert was chosen how often by which router, read from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmmoe.report.files import Row

Array = npt.NDArray[np.float64]

NEARLY = 0.05
"""Choices a position that do not count as one more."""


@dataclass(frozen=True)
class RouterCounts:
    """Choices of the R routers of a model over some steps."""

    names: tuple[str, ...]
    """`layer 3`, or the module's name where a layer has several routers."""
    count_RE: Array
    """Choices of each expert; NaN where a router has no such expert."""
    positions: float
    """Positions that each of them decided over."""

    def num_experts(self) -> Array:
        """Returns the number of experts of each router (R,)."""
        experts_R: Array = np.isfinite(self.count_RE).sum(axis=1).astype(np.float64)
        return experts_R

    def num_chosen(self) -> Array:
        """Returns how many experts of each router (R,) a position chooses: choices over positions.

        That is exactly k with top-k, and 1 with dense, where the count is that of the most probable expert. With top_p,
        where the number is not fixed, it is the mean, rounded up unless it is whole but for a few positions.
        """
        mean_R = np.nansum(self.count_RE, axis=1) / max(self.positions, 1.0)
        chosen_R: Array = np.ceil(mean_R - NEARLY)
        return chosen_R

    def shares(self) -> Array:
        """Returns the share of its router's choices that each expert gets (R, E); rows add up to 1."""
        return shares(self.count_RE)


def counts_of(row: Row) -> RouterCounts | None:
    """Returns the choices of a step's line, or None when it tells of no routers."""
    if not row.get("load") or not row.get("positions"):
        return None
    by_router: Mapping[str, list[int]] | None = row.get("load_by_router")
    if by_router is None:
        tables = [table for by_modality in row["load"].values() for table in by_modality.values()]
        number_of = sorted({layer for table in tables for layer in table}, key=int)
        # Plain numbers, not arrays: the lists are short, and this is done at every step of a training.
        by_router = {
            f"layer {n}": [sum(column) for column in zip(*(table[n] for table in tables if n in table), strict=True)]
            for n in number_of
        }
    return RouterCounts(tuple(by_router), padded(by_router.values()), float(row["positions"]))


def padded(counts: Iterable[Sequence[float] | Array]) -> Array:
    """Returns rows of different lengths as one table, filled up with NaN."""
    rows = list(counts)
    table = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table


def shares(count_RE: Array) -> Array:
    """Returns each row divided by its sum; NaN for a row without any choice, and where a count is NaN."""
    total_R1 = np.nansum(count_RE, axis=1, keepdims=True)
    share_RE: Array = np.divide(count_RE, total_R1, out=np.full_like(count_RE, np.nan), where=total_R1 > 0)
    return share_RE
