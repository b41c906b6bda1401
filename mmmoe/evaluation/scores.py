"""One row a benchmark and variant: the score with everything needed to judge it, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmmoe.evaluation.shares import write_text


@dataclass(frozen=True)
class ScoreRow:
    """The share of right answers and what stands beside it."""

    variant: str
    """Who answered and how: trained, blind (grey picture), untrained (fresh connector)."""
    benchmark: str
    domain: str
    kind: str
    n: int
    """Questions answered."""
    score: float
    low: float
    high: float
    """95 % interval."""
    chance: float
    """Score of a uniform guess."""
    majority: float
    """Score of always giving the most frequent answer."""
    empty_share: float
    """Share of questions that got no usable answer."""
    partial: bool
    """Whether a limit left questions out."""
    prompt_hash: str
    """Digest of all prompts; scores with different ones do not compare."""
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name."""


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Writes rows as a JSON list, whole or not at all; earlier rows of other variants and benchmarks stay."""
    new = {(row.variant, row.benchmark): row for row in rows}
    kept = [row for row in read_scores(path) if (row.variant, row.benchmark) not in new] if path.is_file() else []
    write_text(path, json.dumps([asdict(row) for row in [*kept, *new.values()]], indent=1) + "\n")


def read_scores(path: Path) -> list[ScoreRow]:
    """Returns the rows of a scores file."""
    try:
        return [ScoreRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file of scores ({error}); remove it and evaluate again") from error
