"""The scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mmmoe.evaluation.scores import ScoreRow


def names_and_numbers(title: str, first: str, numbers: Sequence[str]) -> Table:
    """Returns an empty table for 80 columns: long names are folded, never cut, and numbers stay whole."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.caption_justify = "left"
    return table


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """Returns a table, benchmarks together, each score beside its interval and what guessing gives."""
    numbers = ("n", "score", "95 % interval", "chance", "majority", "not\nparsed", "seconds")
    table = names_and_numbers("Scores, in % or points as the metric has it", "benchmark\n  variant, metric", numbers)
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        group = [row for row in rows if row.benchmark == benchmark]
        table.add_row(Text(benchmark, style="bold"))
        for row in group:
            table.add_row(*_cells(row), end_section=row is group[-1])
    table.caption = "\n".join(_notes(rows)) or None
    return table


def category_table(row: ScoreRow) -> Table:
    """Returns a benchmark's score by category."""
    table = Table("category", title=f"{row.benchmark}, {row.variant}, {row.metric}", title_justify="left")
    for name in ("n", "score"):
        table.add_column(name, justify="right")
    for category in row.categories:
        table.add_row(category.name or "none", f"{category.n}", row.shown(category.score))
    return table


def _cells(row: ScoreRow) -> list[str]:
    return [
        f"  {row.variant}, {row.metric}",
        f"{row.n}{'*' if row.partial else ''}",
        row.shown(row.score),
        f"{row.shown(row.low)} to {row.shown(row.high)}",
        row.shown(row.chance),
        row.shown(row.majority),
        f"{100 * row.unparsable_share:.1f} %",
        f"{row.seconds:.1f}",
    ]


def _notes(rows: Sequence[ScoreRow]) -> list[str]:
    """Returns what has to be said beside the numbers."""
    notes = ["* partial: a limit left questions out"] if any(row.partial for row in rows) else []
    reused, asked = sum(row.reused for row in rows), sum(row.n for row in rows)
    if reused:
        notes.append(f"{reused} of {asked} answers were known already and not asked again (seconds without them)")
    for row in rows:
        if row.set_aside and row.variant == rows[0].variant:
            notes.append(f"{row.benchmark}: {row.set_aside} rows set aside, the first: {row.set_aside_reasons[0]}")
        if row.unanswered:
            told = f"{row.unanswered} of {row.n} not answered, which counts as wrong, the first"
            notes.append(f"{row.benchmark}, {row.variant}: {told}: {row.unanswered_reasons[0]}")
        notes += [f"{row.benchmark}: {one.model} {one.value} ({one.source})" for one in row.published]
    return notes
