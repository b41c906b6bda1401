"""The scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mmmoe.evaluation.scores import ScoreRow


def score_table(rows: Sequence[ScoreRow]) -> Table:
    """Returns a table, benchmarks together, each score beside its interval and what guessing gives."""
    table = Table(title="Scores, % right", title_justify="left")
    for name in ("benchmark", "domain", "variant"):
        table.add_column(name)
    for name in ("n", "score", "95 % interval", "chance", "majority", "empty", "seconds"):
        table.add_column(name, justify="right")
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    for benchmark in benchmarks:
        group = [row for row in rows if row.benchmark == benchmark]
        for row in group:
            table.add_row(*_cells(row), end_section=row is group[-1])
    if any(row.partial for row in rows):
        table.caption = "* partial: a limit left questions out"
    return table


def _cells(row: ScoreRow) -> list[str]:
    return [
        row.benchmark,
        row.domain,
        row.variant,
        f"{row.n}{'*' if row.partial else ''}",
        f"{100 * row.score:.1f}",
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        f"{100 * row.chance:.1f}",
        f"{100 * row.majority:.1f}",
        f"{100 * row.empty_share:.1f}",
        f"{row.seconds:.1f}",
    ]
