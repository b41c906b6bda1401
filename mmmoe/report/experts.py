"""Who does the work: each expert's share of a layer's tokens by domain, and the alarms it gives rise to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from mmmoe.report.files import StageLog

Shares = npt.NDArray[np.float64]

LAST_PART = 0.2
"""Share of a stage's steps, counted from its end, that the load is taken from: the routers as they came out."""
DEAD_SHARE = 0.01
"""An expert below this share of its layer's tokens is reported; with more than ten experts, a tenth of an equal one."""
COLLAPSED_SHARE = 0.95
"""An expert above this share of its layer's tokens is reported."""


@dataclass(frozen=True)
class ExpertLoad:
    """Shares of tokens at the end of one stage."""

    stage: str
    layers: tuple[str, ...]
    shares: dict[str, Shares]
    """By domain: (L, E), rows add up to one; a row of NaN is a layer the domain never reached."""
    overall: Shares
    """All domains together, each token counted once."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return int(self.overall.shape[1])


def expert_load(stage: StageLog) -> ExpertLoad | None:
    """Returns the load at the end of a stage, or None when it has no routers."""
    rows = [row for row in stage.rows if row.get("load")]
    if not rows:
        return None
    last = max(row["step"] for row in rows)
    span = last - min(row["step"] for row in stage.rows) + 1
    rows = [row for row in rows if row["step"] > last - LAST_PART * span]
    layers = tuple(dict.fromkeys(layer for row in rows for table in row["load"].values() for layer in table))
    experts = max(len(counts) for row in rows for table in row["load"].values() for counts in table.values())
    counts: dict[str, Shares] = {}
    for row in rows:
        for domain, table in row["load"].items():
            count_LE = counts.setdefault(domain, np.zeros((len(layers), experts)))
            for at, layer in enumerate(layers):
                load = table.get(layer, ())
                count_LE[at, : len(load)] += load
    overall = np.sum(list(counts.values()), axis=0)
    return ExpertLoad(
        stage=stage.name,
        layers=tuple(short_names(layers)),
        shares={domain: _shares(count_LE) for domain, count_LE in counts.items()},
        overall=_shares(overall),
    )


def alarms(load: ExpertLoad) -> list[str]:
    """Returns a sentence for each expert that gets next to nothing, or nearly everything, of a layer."""
    dead_share = min(DEAD_SHARE, 0.1 / load.num_experts)
    if load.num_experts < 2:
        return []
    found = []
    for layer, share_E in zip(load.layers, load.overall, strict=True):
        for expert, share in enumerate(share_E):
            if share < dead_share:
                what = f"gets {_percent(share)} of the tokens (under {_percent(dead_share)}): it is hardly trained"
                found.append(f"{load.stage}, {layer}: expert {expert} {what}.")
            elif share > COLLAPSED_SHARE:
                what = f"gets {_percent(share)} of the tokens: the router has collapsed onto it"
                found.append(f"{load.stage}, {layer}: expert {expert} {what}.")
    return found


def domain_split(load: ExpertLoad) -> list[tuple[str, float]]:
    """Returns (layer, split): the largest total variation between two domains' shares.

    0 means that every domain uses the experts alike, 1 that some two domains have no expert in common.
    """
    tables = list(load.shares.values())
    split_L = np.zeros(len(load.layers))
    for one_LE, other_LE in combinations(tables, 2):
        split_L = np.fmax(split_L, 0.5 * np.abs(one_LE - other_LE).sum(axis=1))
    return [(layer, float(split)) for layer, split in zip(load.layers, split_L, strict=True)]


def short_names(layers: Sequence[str]) -> list[str]:
    """Returns `layer 3` for names that differ in one number only, otherwise the names as they are."""
    shapes = {re.sub(r"\d+", "#", layer) for layer in layers}
    if len(shapes) == 1 and shapes.pop().count("#") == 1:
        return [f"layer {''.join(re.findall(r'[0-9]+', layer))}" for layer in layers]
    return list(layers)


def _shares(count_LE: Shares) -> Shares:
    total_L1 = count_LE.sum(axis=1, keepdims=True)
    share_LE: Shares = np.divide(count_LE, total_L1, out=np.full_like(count_LE, np.nan), where=total_L1 > 0)
    return share_LE


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
