"""The run in numbers: a line a stage and a card a benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmmoe.report.curves import smooth
from mmmoe.report.files import Row, RunFiles, StageLog


@dataclass(frozen=True)
class StageSummary:
    """One stage at a glance; None where it was not logged."""

    name: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    """Running mean at the end."""
    tokens_per_s: float | None
    """Median."""
    waiting: float | None
    """Share of the time spent waiting for data."""
    memory_mb: float | None
    """Largest."""
    seconds: float | None


@dataclass(frozen=True)
class Card:
    """A benchmark's main score and what it must be compared with."""

    benchmark: str
    row: Row
    others: tuple[Row, ...]
    """Other variants on the same questions."""
    beats_guessing: bool
    """Whether the whole interval lies above every other variant's score, chance and majority."""


def summarise_stage(stage: StageLog) -> StageSummary:
    """Returns the stage's line of the table."""
    losses = stage.series("loss")[1]
    seconds, waits = stage.series("seconds")[1], stage.series("data_seconds")[1]
    tokens, memory = stage.series("tokens_per_s")[1], stage.series("memory_mb")[1]
    return StageSummary(
        name=stage.name,
        steps=len(stage.rows),
        first_loss=losses[0] if losses else None,
        last_loss=smooth(losses)[-1] if losses else None,
        tokens_per_s=statistics.median(tokens) if tokens else None,
        waiting=sum(waits) / sum(seconds) if waits and sum(seconds) > 0 else None,
        memory_mb=max(memory) if memory else None,
        seconds=sum(seconds) if seconds else None,
    )


def make_cards(scores: Sequence[Row]) -> list[Card]:
    """Returns a card a benchmark, led by the trained variant or, without one, the first."""
    cards = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in scores):
        rows = [row for row in scores if row["benchmark"] == benchmark]
        main = next((row for row in rows if row["variant"] == "trained"), rows[0])
        others = tuple(row for row in rows if row is not main)
        bars = [main["chance"], main["majority"], *(row["score"] for row in others)]
        known = [bar for bar in bars if bar is not None]
        cards.append(Card(benchmark, main, others, main["low"] is not None and main["low"] > max(known, default=0.0)))
    return cards


def is_bar(row: Row) -> bool:
    """Says whether a score can stand as a bar of percent: points and sums cannot, nor can a part that is missing."""
    numbers = [row.get(name) for name in ("score", "low", "high", "chance", "majority")]
    return bool(row["is_share"]) and all(number is not None for number in numbers)


def subtitle(run: RunFiles) -> str:
    """Returns one line that says how much was done."""
    parts = []
    if run.stages:
        steps = sum(len(stage.rows) for stage in run.stages)
        parts.append(f"{len(run.stages)} stage{'s' if len(run.stages) > 1 else ''}, {steps:,} steps")
        seconds = sum(sum(stage.series("seconds")[1]) for stage in run.stages)
        if seconds:
            parts.append(f"{duration(seconds)} of training")
    if run.scores:
        questions = sum(row["n"] for row in run.scores)
        parts.append(f"{questions:,} questions answered")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
