"""Who does the work at the end of a stage: each expert's share of the choices, overall, by source and by modality.

What is alarming about them is in `mmmoe.report.alarms`:

- dead: an expert gets under 1 %, and under a tenth of an equal share, of its router's choices;
- collapsed: all but the k most used experts together get under 5 %, and under a tenth of their equal share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mmmoe.report.files import Row, StageLog
from mmmoe.report.router_counts import Array, RouterCounts, counts_of, padded, shares

LAST_PART = 0.2
"""Share of a stage's steps, counted from its end, that the load is taken from: the routers as they came out."""


@dataclass(frozen=True)
class ExpertLoad:
    """Shares of choices; tables are (L, E), NaN where a layer has no such expert, and rows add up to 1."""

    stage: str
    layers: tuple[int, ...]
    overall: Array
    """All data together, each choice counted once; the routers of a layer are added up."""
    by_source: dict[str, Array]
    by_modality: dict[str, Array]
    by_part: dict[str, Array]
    """Where a layer has several routers: those of each part of a layer (q_proj); NaN where a layer has no such part."""
    routers: RouterCounts
    """Every router by itself."""

    def cell(self, router: str) -> tuple[str, int]:
        """Returns the part of a router, "" where there is one a layer, and the row of its layer."""
        layer, part = place_of(router)
        return (short_parts(self.routers.names)[part] if self.by_part else "", self.layers.index(layer))


def expert_load(stage: StageLog) -> ExpertLoad | None:
    """Returns the load at the end of a stage, or None when it has no routers."""
    rows = last_rows(stage, "load", "positions")
    found = [counts for row in rows if (counts := counts_of(row)) is not None]
    if not found:
        return None
    names = found[-1].names
    found = [counts for counts in found if counts.names == names]
    total_RE = np.sum([counts.count_RE for counts in found], axis=0)
    routers = RouterCounts(names, total_RE, sum(counts.positions for counts in found))
    by_source, by_modality = _summed(rows)
    layers = tuple(sorted({layer for table in by_modality.values() for layer in table}))
    everything = [{layer: count_E} for table in by_modality.values() for layer, count_E in table.items()]
    return ExpertLoad(
        stage=stage.name,
        layers=layers,
        overall=_table(_added(everything), layers),
        by_source={name: _table(table, layers) for name, table in by_source.items()},
        by_modality={name: _table(table, layers) for name, table in by_modality.items()},
        by_part=_parts(routers, layers) if len(names) > len(layers) else {},
        routers=routers,
    )


def split(tables: Mapping[str, Array]) -> Array | None:
    """Returns the largest total variation between two tables' shares, by layer; None where there are no two.

    0 means that all use the experts alike, 1 that some two have no expert in common.
    """
    if len(tables) < 2:
        return None
    distances = [0.5 * np.nansum(np.abs(one - other), axis=1) for one, other in combinations(tables.values(), 2)]
    return np.asarray(np.max(distances, axis=0), dtype=np.float64)


def place_of(router: str) -> tuple[int, str]:
    """Returns the number of a router's layer and what of the layer it sits on: (3, "self_attn.q_proj")."""
    if found := re.fullmatch(r"layer (\d+)", router):
        return int(found[1]), ""
    found = re.search(r"(?:^|\.)(\d+)(?:\.(.*))?$", router)
    return (int(found[1]), found[2] or "") if found else (0, router)


def short_parts(routers: Iterable[str]) -> dict[str, str]:
    """Returns for each part of a layer its last word, or all of it where two parts end alike."""
    parts = list(dict.fromkeys(place_of(router)[1] for router in routers))
    last = [part.rpartition(".")[2] for part in parts]
    return {part: word if last.count(word) == 1 else part for part, word in zip(parts, last, strict=True)}


def short_routers(routers: Sequence[str]) -> dict[str, str]:
    """Returns readable names: `layer 3`, or `layer 3, q_proj` where a layer has several routers."""
    parts = short_parts(routers)
    places = {router: place_of(router) for router in routers}
    return {
        router: f"layer {layer}, {parts[part]}" if part and len(parts) > 1 else f"layer {layer}"
        for router, (layer, part) in places.items()
    }


def last_rows(stage: StageLog, *keys: str) -> list[Row]:
    """Returns the lines of a stage's last part that have something at all of these keys."""
    rows = [row for row in stage.rows if all(row.get(key) for key in keys)]
    if not rows:
        return []
    last = max(row["step"] for row in rows)
    span = last - min(row["step"] for row in stage.rows) + 1
    return [row for row in rows if row["step"] > last - LAST_PART * span]


_Counts = dict[int, Array]


def _summed(rows: Sequence[Row]) -> tuple[dict[str, _Counts], dict[str, _Counts]]:
    """Returns the choices by layer of each source and of each modality."""
    by_source: dict[str, list[_Counts]] = {}
    by_modality: dict[str, list[_Counts]] = {}
    for row in rows:
        for source, modalities in row["load"].items():
            for modality, layers in modalities.items():
                table = {int(layer): np.asarray(counts, dtype=np.float64) for layer, counts in layers.items()}
                by_source.setdefault(source, []).append(table)
                by_modality.setdefault(modality, []).append(table)
    return _each_added(by_source), _each_added(by_modality)


def _each_added(tables: dict[str, list[_Counts]]) -> dict[str, _Counts]:
    return {name: _added(parts) for name, parts in tables.items()}


def _added(tables: Iterable[_Counts]) -> _Counts:
    total: _Counts = {}
    for table in tables:
        for layer, count_E in table.items():
            total[layer] = total[layer] + count_E if layer in total else count_E
    return total


def _table(counts: _Counts, layers: Sequence[int]) -> Array:
    return shares(padded(counts.get(layer, ()) for layer in layers))


def _parts(routers: RouterCounts, layers: Sequence[int]) -> dict[str, Array]:
    short, share_RE = short_parts(routers.names), routers.shares()
    tables: dict[str, Array] = {}
    for name, share_E in zip(routers.names, share_RE, strict=True):
        layer, part = place_of(name)
        table = tables.setdefault(short[part], np.full((len(layers), share_RE.shape[1]), np.nan))
        table[layers.index(layer)] = share_E
    return tables
