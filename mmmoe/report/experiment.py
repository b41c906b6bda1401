"""An experiment written up: the score of each variant by domain, beside the first one's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmmoe.report.bars import Bar, score_figure
from mmmoe.report.theme import LIGHT, png, styled

NAME = "experiment"


@dataclass(frozen=True)
class ExperimentRow:
    """One run's score on one benchmark."""

    variant: str
    """Adapters and data of the run, for example `plain LoRA on the mix`."""
    benchmark: str
    domain: str
    n: int
    score: float
    low: float
    high: float
    chance: float
    majority: float
    partial: bool = False
    seed: int | None = None
    """Tells runs of one variant apart."""

    @classmethod
    def of(cls, variant: str, score: Any, seed: int | None = None) -> ExperimentRow:
        """Returns the row of a variant from an evaluation's score row, which has the fields of the same names."""
        taken = {
            field.name: getattr(score, field.name) for field in fields(cls) if field.name not in ("variant", "seed")
        }
        return cls(variant=variant, seed=seed, **taken)


def write_experiment(folder: Path, rows: Sequence[ExperimentRow]) -> Path:
    """Writes `experiment.md`, `experiment.json` and `experiment.png` into `folder`; returns the Markdown file.

    Args:
        folder: made if missing.
        rows: in the order they are to be compared: the others stand beside the first variant. Rows of the same
            variant and benchmark are runs with different seeds.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("the experiment has no score rows; evaluate its runs first")
    bars = _benchmark_bars(rows)
    domains = _domain_bars(rows, bars)
    folder.mkdir(parents=True, exist_ok=True)
    with styled(LIGHT):
        (folder / f"{NAME}.png").write_bytes(png(score_figure(domains, LIGHT)))
    record = {
        "rows": [asdict(row) for row in rows],
        "domains": [asdict(bar) for bar in domains],
        "findings": _findings(domains),
    }
    (folder / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = folder / f"{NAME}.md"
    page.write_text(_markdown(folder.name, rows, bars, domains), encoding="utf-8")
    return page


def _benchmark_bars(rows: Sequence[ExperimentRow]) -> list[Bar]:
    """Returns a bar a variant and benchmark: the mean over seeds, and an interval that spans those of all seeds."""
    seeds: dict[tuple[str, str], list[ExperimentRow]] = {}
    for row in rows:
        seeds.setdefault((row.variant, row.benchmark), []).append(row)
    bars = []
    for (variant, benchmark), runs in seeds.items():
        scores = [row.score for row in runs]
        bars.append(
            Bar(
                group=benchmark,
                series=variant,
                score=_mean(scores),
                low=min(row.low for row in runs),
                high=max(row.high for row in runs),
                chance=runs[0].chance,
                majority=runs[0].majority,
                points=tuple(scores) if len(scores) > 1 else (),
            )
        )
    return bars


def _domain_bars(rows: Sequence[ExperimentRow], bars: Sequence[Bar]) -> list[Bar]:
    """Returns a bar a variant and domain: the plain mean over its benchmarks.

    The benchmarks ask different questions, so the distances to the ends of their intervals add up as independent
    errors do: the mean's is the root of their summed squares over their number.
    """
    domain_of = {row.benchmark: row.domain for row in rows}
    parts: dict[tuple[str, str], list[Bar]] = {}
    for bar in bars:
        parts.setdefault((bar.series, domain_of[bar.group]), []).append(bar)
    means = []
    for (variant, domain), part in parts.items():
        score = _mean([bar.score for bar in part])
        below = math.hypot(*(bar.score - bar.low for bar in part)) / len(part)
        above = math.hypot(*(bar.high - bar.score for bar in part)) / len(part)
        means.append(
            Bar(
                group=domain,
                series=variant,
                score=score,
                low=score - below,
                high=score + above,
                chance=_mean([bar.chance for bar in part]),
                majority=_mean([bar.majority for bar in part]),
                points=part[0].points if len(part) == 1 else (),
            )
        )
    return means


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _findings(bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Returns, for each group, how every later variant differs from the first one."""
    findings = []
    for group in dict.fromkeys(bar.group for bar in bars):
        first, *others = [bar for bar in bars if bar.group == group]
        for bar in others:
            findings.append(
                {
                    "group": group,
                    "variant": bar.series,
                    "against": first.series,
                    "difference": bar.score - first.score,
                    "intervals_overlap": bar.low <= first.high and first.low <= bar.high,
                }
            )
    return findings


def _markdown(title: str, rows: Sequence[ExperimentRow], bars: Sequence[Bar], domains: Sequence[Bar]) -> str:
    lines = [f"# Experiment {title}", "", "Right answers in % (95 % interval), by domain of the questions.", ""]
    lines += _by_group(domains)
    lines += ["", f"![Score by domain for each variant]({NAME}.png)", "", "## Reading", ""]
    lines += [f"- {_sentence(finding)}" for finding in _findings(domains)]
    if len(bars) > len(domains):
        lines += ["", "A domain's score is the plain mean over its benchmarks:", "", *_by_benchmark(rows, bars)]
    lines += ["", _footnote(rows), ""]
    return "\n".join(lines)


def _by_group(bars: Sequence[Bar]) -> list[str]:
    """Returns a table with a row a variant and a column a group."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    by_key = {(bar.series, bar.group): bar for bar in bars}
    lines = ["| variant | " + " | ".join(map(_cell, groups)) + " |", "|---|" + "---:|" * len(groups)]
    for name in series:
        lines.append(f"| {_cell(name)} | " + " | ".join(_score(by_key.get((name, group))) for group in groups) + " |")
    for label in ("chance", "majority"):
        first = [next(bar for bar in bars if bar.group == group) for group in groups]
        lines.append(f"| {label} | " + " | ".join(f"{100 * getattr(bar, label):.1f}" for bar in first) + " |")
    return lines


def _by_benchmark(rows: Sequence[ExperimentRow], bars: Sequence[Bar]) -> list[str]:
    """Returns a table with a row a benchmark and a column a variant."""
    series = list(dict.fromkeys(bar.series for bar in bars))
    by_key = {(bar.series, bar.group): bar for bar in bars}
    lines = ["| domain | benchmark | chance | majority | " + " | ".join(map(_cell, series)) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(series))
    for benchmark, domain in {row.benchmark: row.domain for row in rows}.items():
        first = next(bar for bar in bars if bar.group == benchmark)
        guesses = f"{100 * first.chance:.1f} | {100 * first.majority:.1f}"
        cells = " | ".join(_score(by_key.get((name, benchmark))) for name in series)
        lines.append(f"| {_cell(domain)} | {_cell(benchmark)} | {guesses} | {cells} |")
    return lines


def _score(bar: Bar | None) -> str:
    return "–" if bar is None else f"{100 * bar.score:.1f} ({100 * bar.low:.1f} to {100 * bar.high:.1f})"


def _sentence(finding: Mapping[str, Any]) -> str:
    points = 100 * finding["difference"]
    how = "above" if points >= 0 else "below"
    sure = "the intervals overlap" if finding["intervals_overlap"] else "the intervals do not overlap"
    return (
        f"{_cell(finding['group'])}: {_cell(finding['variant'])} is {abs(points):.1f} points {how} "
        f"{_cell(finding['against'])}; {sure}."
    )


def _footnote(rows: Sequence[ExperimentRow]) -> str:
    counts = sorted({row.n for row in rows})
    questions = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = f"Each benchmark has {questions} questions."
    if len({(row.variant, row.benchmark) for row in rows}) < len(rows):
        note += " Scores are means over seeds; an interval spans those of all its seeds."
    if any(row.partial for row in rows):
        note += " Some scores are partial: a limit left questions out."
    return note


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
