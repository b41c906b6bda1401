"""Two evaluations question by question: the difference of their scores, how sure it is, and where they part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from mmmoe import paths
from mmmoe.evaluation.answers import Answer, read_answers
from mmmoe.evaluation.metrics.registry import metric_of
from mmmoe.evaluation.scores import SCORES_FILE, ScoreRow, read_scores
from mmmoe.evaluation.shares import write_text
from mmmoe.evaluation.statistics import paired
from mmmoe.evaluation.table import names_and_numbers

COMPARISON_FILE = "comparison.json"
VARIANT = "trained"
RESAMPLES = 10_000
SHOWN = 3


@dataclass(frozen=True)
class ComparisonRow:
    """One benchmark in both evaluations; differences are first minus second, on the metric's own scale."""

    benchmark: str
    metric: str
    scale: float
    n: int
    """Questions."""
    groups: int
    """Questions that are judged together count once."""
    first: float
    second: float
    difference: float
    low: float
    high: float
    """95 % interval of the difference, from resamples that both runs share."""
    p: float
    """Two-sided."""
    first_only: int
    """Questions on which the first has the higher score."""
    second_only: int
    partial: bool


def compare(first: Path, second: Path, benchmarks: Sequence[str] = ()) -> list[ComparisonRow]:
    """Returns the comparison of two evaluations and writes it to `comparison.json` in the first one's folder.

    Args:
        first: a run's folder, or an evaluation's.
        second: likewise.
        benchmarks: which; all that both have where none are named.

    Raises:
        ValueError: The two cannot be compared: other prompts or decoding, another metric, other
            questions, or no benchmark in both.
    """
    folders = [evaluation_folder(first), evaluation_folder(second)]
    ours, theirs = (_trained(folder) for folder in folders)
    wanted = list(benchmarks) or [name for name in ours if name in theirs]
    if not wanted:
        raise ValueError(f"no benchmark is in both: {', '.join(ours)} and {', '.join(theirs)}")
    for name in wanted:
        for folder, rows in zip(folders, (ours, theirs), strict=True):
            if name not in rows:
                raise ValueError(f"{folder} has no benchmark {name!r}; it has {', '.join(rows)}")
    compared = [_compared(name, ours[name], theirs[name], *folders) for name in wanted]
    content = {"first": str(first), "second": str(second), "rows": [asdict(row) for row in compared]}
    write_text(folders[0] / COMPARISON_FILE, json.dumps(content, indent=1) + "\n")
    return compared


def evaluation_folder(path: Path) -> Path:
    """Returns where scores lie: the folder itself, or a run's own evaluation.

    Raises:
        ValueError: There are none.
    """
    if not path.exists():
        near = paths.near(path)
        raise ValueError(f"{path} does not exist" + (f"; did you mean {near}?" if near else ""))
    for folder in (path, path / "evaluation"):
        if (folder / SCORES_FILE).is_file():
            return folder
    raise ValueError(f"{path} holds no {SCORES_FILE}: name a run that was evaluated, or the folder of an evaluation")


def comparison_table(rows: Sequence[ComparisonRow], first: str, second: str) -> Table:
    """Returns the comparison as a table for the terminal."""
    numbers = ("n", "first", "second", "differ-\nence", "95 % interval", "p", "first\nbetter", "second\nbetter")
    table = names_and_numbers(escape(f"{first} against {second}"), "benchmark\n  metric", numbers)
    for row in rows:
        shown = [row.scale * number for number in (row.first, row.second, row.difference, row.low, row.high)]
        table.add_row(
            f"{row.benchmark}\n  {row.metric}",
            f"{row.n}{'*' if row.partial else ''}",
            f"{shown[0]:.1f}",
            f"{shown[1]:.1f}",
            f"{shown[2]:+.1f}",
            f"{shown[3]:+.1f} to {shown[4]:+.1f}",
            f"{row.p:.4f}",
            f"{row.first_only}",
            f"{row.second_only}",
        )
    if any(row.partial for row in rows):
        table.caption = "* partial: a limit left questions out"
    return table


def _trained(folder: Path) -> dict[str, ScoreRow]:
    return {row.benchmark: row for row in read_scores(folder / SCORES_FILE) if row.variant == VARIANT}


def _compared(name: str, ours: ScoreRow, theirs: ScoreRow, here: Path, there: Path) -> ComparisonRow:
    if ours.metric != theirs.metric:
        raise ValueError(
            f"benchmark {name!r} was scored by {ours.metric} and {theirs.metric}; evaluate both with the same metric"
        )
    if not ours.metric:
        raise ValueError(f"benchmark {name!r} was scored before metrics had names; evaluate again with `mmmoe eval`")
    first, second = (read_answers(folder / VARIANT / f"{name}.jsonl") for folder in (here, there))
    _check_same_questions(name, first, second)
    if ours.prompt_hash != theirs.prompt_hash:
        raise ValueError(
            f"benchmark {name!r} was asked in other words (prompts {ours.prompt_hash} and {theirs.prompt_hash}): "
            "wording, template or tokenizer differ; evaluate both with the same prompt"
        )
    ways = [f"beams {row.beams} and repetition_penalty {row.repetition_penalty:g}" for row in (ours, theirs)]
    if ways[0] != ways[1]:
        raise ValueError(
            f"benchmark {name!r} was answered with other decoding ({ways[0]}; {ways[1]}); evaluate both with the same"
        )
    metric = metric_of(ours.metric)
    ours_counted, theirs_counted = (
        metric.counts([answer.item for answer in answers], [answer.verdict for answer in answers])
        for answers in (first, second)
    )
    found = paired(ours_counted, theirs_counted, metric, RESAMPLES)
    by_id = {answer.id: answer.score for answer in second}
    leads = [answer.score - by_id[answer.id] for answer in first]
    return ComparisonRow(
        benchmark=name,
        metric=metric.name,
        scale=metric.scale,
        n=len(first),
        groups=found.groups,
        first=ours.score,
        second=theirs.score,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        first_only=sum(lead > 0 for lead in leads),
        second_only=sum(lead < 0 for lead in leads),
        partial=ours.partial or theirs.partial,
    )


def _check_same_questions(name: str, first: Sequence[Answer], second: Sequence[Answer]) -> None:
    ids = [{answer.id for answer in answers} for answers in (first, second)]
    if lone := sorted(ids[0] ^ ids[1]):
        raise ValueError(
            f"benchmark {name!r}: {len(lone)} questions were put to one of the two only ({', '.join(lone[:SHOWN])}); "
            "evaluate both with the same file and limit"
        )
    right = {answer.id: answer.answers for answer in second}
    if other := [answer.id for answer in first if answer.answers != right[answer.id]]:
        raise ValueError(
            f"benchmark {name!r}: the right answer of {len(other)} questions differs ({', '.join(other[:SHOWN])}); "
            "evaluate both with the same file"
        )
