"""The scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mmmoe.evaluation.scores import ScoreRow


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """Returns a table, benchmarks together, each score beside its interval and what guessing gives."""
    table = Table(title="Scores, in % or points as the metric has it", title_justify="left")
    for name in ("benchmark", "variant", "metric"):
        table.add_column(name)
    for name in ("n", "score", "95 % interval", "chance", "majority", "unparsed", "seconds"):
        table.add_column(name, justify="right")
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        group = [row for row in rows if row.benchmark == benchmark]
        for row in group:
            table.add_row(*_cells(row), end_section=row is group[-1])
    table.caption = "\n".join(_notes(rows)) or None
    table.caption_justify = "left"
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
        row.benchmark,
        row.variant,
        row.metric,
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
