"""One row a benchmark and variant: the score with everything needed to judge it, and the file it is kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmmoe.evaluation.shares import write_text

SCORES_FILE = "scores.json"
NUMBERS = ("score", "low", "high", "chance", "majority")
"""Fields that are null in a file where a part that the score needs was not asked."""


@dataclass(frozen=True)
class CategoryScore:
    """The score of one category's questions alone."""

    name: str
    n: int
    score: float


@dataclass(frozen=True)
class PaperScore:
    """What a paper says of a model on a benchmark."""

    model: str
    value: str
    """As printed there."""
    source: str
    """Paper and table."""


@dataclass(frozen=True)
class ScoreRow:
    """A benchmark's score and what stands beside it."""

    variant: str
    """Who answered and how: trained, blind (grey picture), untrained (before any image was seen)."""
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
    """Score of always giving the same answer, the best of the most frequent ones."""
    empty_share: float
    """Share of questions that got no usable answer."""
    partial: bool
    """Whether a limit left questions out."""
    prompt_hash: str
    """Digest of all prompts; scores with different ones do not compare."""
    seconds: float
    measures: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name."""
    metric: str = ""
    """Its name in the registry; empty in files of before there was one."""
    scale: float = 100.0
    """What a score of 1 is shown as: 100 for shares, 1 for points."""
    is_share: bool = True
    """Whether the score lies between 0 and 1."""
    unparsable_share: float = 0.0
    """Share of answers of which the metric understood nothing."""
    categories: list[CategoryScore] = field(default_factory=list)
    """Empty where questions have no category."""
    set_aside: int = 0
    """Rows of the benchmark's files that are no questions because something is wrong with them."""
    set_aside_reasons: list[str] = field(default_factory=list)
    """What is wrong with the first of them."""
    unanswered: int = 0
    """Questions that the subject had no room for; they are among those asked, and wrong."""
    unanswered_reasons: list[str] = field(default_factory=list)
    """Why, of the first of them."""
    reused: int = 0
    """Questions whose answer was known from an earlier or a killed evaluation."""
    beams: int = 1
    """Continuations that generated answers are the best of; 1 where nothing is generated, as the next."""
    repetition_penalty: float = 1.0
    published: list[PaperScore] = field(default_factory=list)
    """What papers say of this family on the benchmark."""

    def shown(self, score: float) -> str:
        """Returns a score as it is shown; a part that is missing is a dash."""
        return "-" if not math.isfinite(score) else f"{self.scale * score:.1f}"


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Writes rows as a JSON list, whole or not at all; earlier rows of other variants and benchmarks stay."""
    new = {(row.variant, row.benchmark): row for row in rows}
    kept = [row for row in read_scores(path) if (row.variant, row.benchmark) not in new] if path.is_file() else []
    write_text(path, json.dumps([_plain(row) for row in [*kept, *new.values()]], indent=1) + "\n")


def read_scores(path: Path) -> list[ScoreRow]:
    """Returns the rows of a scores file."""
    try:
        return [_row(row) for row in json.loads(path.read_bytes().decode())]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line} is not UTF-8 ({error.reason}); remove it and evaluate again") from error
    except (TypeError, AttributeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file of scores ({error}); remove it and evaluate again") from error


def _plain(row: ScoreRow) -> dict[str, Any]:
    """Returns a row as JSON has it: what is not a number is null."""
    plain = asdict(row)
    for part in (plain, *plain["categories"]):
        for name, value in part.items():
            if isinstance(value, float) and not math.isfinite(value):
                part[name] = None
    return plain


def _row(plain: dict[str, Any]) -> ScoreRow:
    numbers = {name: math.nan for name in NUMBERS if name in plain and plain[name] is None}
    categories = [CategoryScore(**_numbered(one)) for one in plain.get("categories", [])]
    published = [PaperScore(**one) for one in plain.get("published", [])]
    return ScoreRow(**plain | numbers | {"categories": categories, "published": published})


def _numbered(plain: dict[str, Any]) -> dict[str, Any]:
    return plain if plain["score"] is not None else plain | {"score": math.nan}
