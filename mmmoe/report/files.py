"""What a run folder holds, read as plain data; anything missing is simply absent from the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmmoe import lines
from mmmoe.conceal import conceal

Row = dict[str, Any]
OTHER_ROUTING = "evaluation_routing_"
"""Begins the names of folders of evaluations whose vision experts were chosen otherwise than the run declares."""


@dataclass(frozen=True)
class StageLog:
    """One stage's metrics, a row a step."""

    name: str
    rows: tuple[Row, ...]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Returns (steps, values) of a number that some or all rows have."""
        kept = [row for row in self.rows if isinstance(row.get(key), int | float)]
        return [int(row["step"]) for row in kept], [float(row[key]) for row in kept]

    def series_of(self, key: str) -> dict[str, tuple[list[int], list[float]]]:
        """Returns (steps, values) by name for an entry that is a table of numbers, or a list with one a layer."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for row in self.rows:
            entry = row.get(key) or {}
            if isinstance(entry, list):
                entry = dict(zip(_layer_names(row, len(entry)), entry, strict=True))
            for name, value in entry.items():
                if isinstance(value, int | float):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
        return found


def _layer_names(row: Row, count: int) -> list[str]:
    """Returns names for a list with a number a layer: those that the line's load tells of, if they are as many."""
    tables = [table for by_modality in (row.get("load") or {}).values() for table in by_modality.values()]
    layers = sorted(tables[0], key=int) if tables else [str(at) for at in range(count)]
    # An adapter that is not on every routed layer has a list of its own length; which layers it is on is not told.
    return [f"layer {layer}" for layer in layers] if len(layers) == count else [f"row {at}" for at in range(count)]


@dataclass(frozen=True)
class RunFiles:
    """Everything a report is made of."""

    folder: Path
    name: str
    stages: tuple[StageLog, ...] = ()
    scores: tuple[Row, ...] = ()
    answers: dict[tuple[str, str], tuple[Row, ...]] = field(default_factory=dict)
    """Answer rows by (variant, benchmark)."""
    spec_text: str = ""
    ledger: tuple[Row, ...] = ()
    experts: tuple[str, ...] = ()
    """Vision experts of the model, in the order of an answer's routing."""
    routing: str = ""
    """How the run's own evaluation chose them."""
    agreement: tuple[Row, ...] = ()
    """How well the model's own routing agrees with the labels, a row a benchmark."""
    other_routings: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    """Score rows of further evaluations by the way that experts were chosen."""
    costs: tuple[Row, ...] = ()
    """Files of `mmmoe bench vision_experts`, whole."""


def read_run(folder: Path, benches: Sequence[Path] = ()) -> RunFiles:
    """Returns what is in a run folder.

    Args:
        folder: of the run.
        benches: files of `mmmoe bench vision_experts`, besides those in the folder.

    Raises:
        ValueError: there is no such folder, or it holds neither stages nor scores.
    """
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}; name the folder that `mmmoe run` made")
    spec_text = (folder / "spec.yaml").read_text(encoding="utf-8") if (folder / "spec.yaml").is_file() else ""
    spec = yaml.safe_load(spec_text) if spec_text else None
    spec = spec if isinstance(spec, dict) else {}
    scores = _read_scores(folder / "evaluation" / "scores.json")
    stages = _read_stages(folder, [str(stage.get("name")) for stage in spec.get("stages") or []])
    if not stages and not scores:
        raise ValueError(f"{folder} has no stages/*/metrics.jsonl and no evaluation/scores.json: nothing to report yet")
    answers = {(row["variant"], row["benchmark"]): _read_answers(folder, row) for row in scores}
    return RunFiles(
        folder=folder,
        name=str(spec.get("name") or folder.resolve().name),
        stages=stages,
        scores=tuple(scores),
        answers=answers,
        spec_text=conceal(spec_text),
        ledger=tuple(lines.read(folder / "ledger.jsonl")),
        experts=tuple((spec.get("model") or {}).get("experts") or ()),
        routing=_in_words((spec.get("evaluation") or {}).get("routing") or "predicted"),
        agreement=tuple(_read_list(folder / "evaluation" / "routing.json")),
        other_routings=_read_other_routings(folder),
        costs=tuple(_read_costs([*sorted(folder.glob("*vision_experts*.json")), *benches])),
    )


def _in_words(routing: Any) -> str:
    return routing if isinstance(routing, str) else ", ".join(routing)


def _read_list(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def _read_scores(path: Path) -> list[Row]:
    """Returns score rows; those of before metrics had names are shares of right answers."""
    return [
        {"metric": "", "scale": 100.0, "is_share": True, "unparsable_share": row.get("empty_share", 0.0),
         "categories": [], "measures": {}, "set_aside": 0, "unanswered": 0, "published": []} | row
        for row in _read_list(path)
    ]  # fmt: skip


def _read_other_routings(folder: Path) -> dict[str, tuple[Row, ...]]:
    """Returns the scores of evaluations with another routing than the run's; quick looks are left out."""
    found = {}
    for path in sorted(folder.glob(f"{OTHER_ROUTING}*/scores.json")):
        name = path.parent.name.removeprefix(OTHER_ROUTING)
        if not name.endswith("_partial"):
            found[name.replace("+", ", ")] = tuple(_read_scores(path))
    return found


def _read_costs(paths: Sequence[Path]) -> list[Row]:
    costs = []
    for path in paths:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no file of `mmmoe bench vision_experts` ({error}); measure again") from error
        if not isinstance(found, dict) or found.get("name") != "vision_experts":
            raise ValueError(f"{path} holds no results of `mmmoe bench vision_experts`; leave it out")
        costs.append(found)
    return costs


def _read_stages(folder: Path, declared: list[str]) -> tuple[StageLog, ...]:
    """Returns the stages that have metrics, in the order the spec declares them."""
    found = {path.parent.name: path for path in sorted(folder.glob("stages/*/metrics.jsonl"))}
    order = [name for name in declared if name in found] + [name for name in found if name not in declared]
    logs = []
    for name in order:
        rows = tuple(row for row in lines.read(found[name]) if isinstance(row.get("step"), int))
        if rows:
            logs.append(StageLog(name, rows))
    return tuple(logs)


def _read_answers(folder: Path, row: Row) -> tuple[Row, ...]:
    root = (folder / "evaluation").resolve()
    path = (root / str(row["variant"]) / f"{row['benchmark']}.jsonl").resolve()
    # Names come from a file: they must not lead out of the run folder.
    return tuple(lines.read(path)) if path.is_relative_to(root) else ()
