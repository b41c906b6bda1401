"""Which vision experts look at what: read from answer files, from `routing.json` and from lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmmoe.report.experts import last_rows
from mmmoe.report.files import Row, RunFiles, StageLog
from mmmoe.report.router_counts import Array

EVALUATED, NAMED, LABELS = "as evaluated", "named by the model", "labels by loss"
Place = tuple[str, str]
"""A benchmark and a domain of its questions."""


@dataclass(frozen=True)
class ExpertShares:
    """Of the questions of each place, the share that each expert looks at."""

    rows: tuple[str, ...]
    experts: tuple[str, ...]
    panels: dict[str, Array]
    """By who chose, shares (Q, E); NaN where that is not known. A row adds up to the mean number of experts."""


@dataclass(frozen=True)
class TrainedExperts:
    """What experts did with the images of a stage's last steps."""

    stage: str
    experts: tuple[str, ...]
    share: ExpertShares
    """Of the images of each source."""
    gates: dict[str, Array]
    """By source, the weights (L, E) in each block, means over the images that an expert looked at."""


def chosen_experts(run: RunFiles) -> ExpertShares | None:
    """Returns who looked at the questions of each benchmark; None where answers and labels tell of no experts.

    What the model names and what labels want are of the questions that were labelled, often the first ones only.
    """
    found: dict[str, dict[Place, Array]] = {EVALUATED: {}, NAMED: {}, LABELS: {}}
    numbers: dict[str, dict[Place, int]] = {EVALUATED: {}, NAMED: {}}
    for (variant, benchmark), answers in run.answers.items():
        asked = [row for row in answers if row.get("routing")] if variant == "trained" else []
        for domain in dict.fromkeys(str(row["domain"]) for row in asked):
            routings = [row["routing"] for row in asked if row["domain"] == domain]
            found[EVALUATED][benchmark, domain] = np.mean(np.asarray(routings, dtype=np.float64), axis=0)
            numbers[EVALUATED][benchmark, domain] = len(routings)
    for row in run.agreement:
        for share in row.get("shares") or ():
            place = (str(row["benchmark"]), str(share["domain"]))
            found[NAMED][place] = np.asarray(share["predicted"], dtype=np.float64)
            found[LABELS][place] = np.asarray(share["labels"], dtype=np.float64)
            numbers[NAMED][place] = int(share["n"])
    if run.routing == "predicted" and numbers[NAMED] == numbers[EVALUATED]:
        del found[NAMED]  # the same answers once more
    return _shares({who: table for who, table in found.items() if table}, run.experts)


def trained_experts(stages: Sequence[StageLog]) -> TrainedExperts | None:
    """Returns what experts did at the end of the last stage that has them, or None."""
    for stage in reversed(stages):
        lines = [row["vision"] for row in last_rows(stage, "vision")]
        if lines:
            return _trained(stage.name, lines)
    return None


def _trained(stage: str, lines: Sequence[Mapping[str, Row]]) -> TrainedExperts:
    experts = tuple(next(iter(lines[-1].values()))["routed"])
    share: dict[Place, Array] = {}
    gates: dict[str, Array] = {}
    for source in dict.fromkeys(name for line in lines for name in line):
        parts = [line[source] for line in lines if source in line]
        routed_E = np.sum([[part["routed"][name] for name in experts] for part in parts], axis=0)
        share[source, ""] = routed_E / sum(part["images"] for part in parts)
        enriched = [part for part in parts if part.get("gates")]
        if enriched:
            weights = [part["enriched"] for part in enriched]
            gates[source] = np.average([part["gates"] for part in enriched], axis=0, weights=weights)
    shares = _shares({"": share}, experts)
    assert shares is not None
    return TrainedExperts(stage, experts, shares, gates)


def _shares(tables: Mapping[str, Mapping[Place, Array]], names: Sequence[str]) -> ExpertShares | None:
    places = list(dict.fromkeys(place for table in tables.values() for place in table))
    if not places:
        return None
    many = [benchmark for benchmark, _ in places]
    experts = max(len(share_E) for table in tables.values() for share_E in table.values())
    known = tuple(names) if len(names) == experts else tuple(f"expert {number}" for number in range(experts))
    absent_E = np.full(experts, np.nan)
    return ExpertShares(
        tuple(f"{name}: {domain}" if many.count(name) > 1 else name for name, domain in places),
        known,
        {who: np.array([table.get(place, absent_E) for place in places]) for who, table in tables.items()},
    )
