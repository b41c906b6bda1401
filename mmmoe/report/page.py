"""The report of a run: PNG plots beside one HTML page that carries everything it shows and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmmoe.conceal import conceal
from mmmoe.report.alarm_log import raised_alarms, standing_sentences
from mmmoe.report.alarms import DEAD_SHARE, LEAST_CHOICES, LEFT_SHARE
from mmmoe.report.examples import choose_examples, png_address
from mmmoe.report.expert_plots import splits_of
from mmmoe.report.experts import expert_load
from mmmoe.report.files import Row, RunFiles, read_run
from mmmoe.report.picture import Plot
from mmmoe.report.plots import draw_plots
from mmmoe.report.summary import duration, make_cards, subtitle, summarise_stage
from mmmoe.report.vision_cost import VisionCost

PAGE_FILE = "report.html"
PLOTS_FOLDER = "plots"


def write_report(run_folder: Path, benches: Sequence[Path] = ()) -> Path:
    """Writes `plots/*.png` and `report.html` into a run folder from its files alone; returns the page.

    Args:
        run_folder: of the run.
        benches: files of `mmmoe bench vision_experts` that lie elsewhere; those in the folder are found.

    Raises:
        ValueError: the folder holds neither metrics nor scores, or a file is no such bench.
    """
    run = read_run(run_folder, benches)
    plots = draw_plots(run)
    folder = run_folder / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.light)
    page = run_folder / PAGE_FILE
    partial = page.with_name(page.name + ".partial")
    partial.write_text(render(run, plots), encoding="utf-8")
    partial.replace(page)
    return page


def render(run: RunFiles, plots: list[Plot]) -> str:
    """Returns the page's HTML; every text from the run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(address=png_address, percent=_percent, points=_points, number=_number, duration=duration)
    loads = [load for load in map(expert_load, run.stages) if load is not None]
    context: dict[str, Any] = {
        "run": run,
        "subtitle": subtitle(run),
        "cards": make_cards(run.scores),
        "alarms": standing_sentences(run.stages),
        "rule": {"dead": DEAD_SHARE, "left": LEFT_SHARE, "least": LEAST_CHOICES},
        "raised": raised_alarms(run.stages),
        "plots": {section: [plot for plot in plots if plot.section == section] for section in _sections(plots)},
        "stages": [summarise_stage(stage) for stage in run.stages],
        "splits": [(load, splits) for load in loads if (splits := splits_of(load))],
        "loads": loads,
        "has_vision": bool(run.agreement) or any(plot.section == "vision" for plot in plots),
        "costs": [VisionCost.read(found) for found in run.costs],
        "example_sets": choose_examples(run),
        "ledger_columns": _columns(run.ledger),
        "ledger": [_shown(row) for row in run.ledger],
        "drawings": [row for row in run.scores if row["kind"] == "drawing" and row["measures"]],
        "is_partial": any(row.get("partial") for row in run.scores),
    }
    return environment.get_template("page.html.j2").render(context)


def _sections(plots: list[Plot]) -> list[str]:
    return list(dict.fromkeys(plot.section for plot in plots))


def _columns(ledger: tuple[Row, ...]) -> list[str]:
    """Returns the fields of the ledger in order of first appearance; nested ones stay in the file."""
    return list(
        dict.fromkeys(key for row in ledger for key, value in row.items() if not isinstance(value, dict | list))
    )


def _shown(row: Row) -> Row:
    """Returns a ledger row with seconds since the epoch turned into a date."""
    shown = {key: conceal(value) if isinstance(value, str) else value for key, value in row.items()}
    for key, value in row.items():
        if isinstance(value, float) and value > 1e9:
            shown[key] = datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S")
    return shown


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _points(value: float | None, row: Row) -> str:
    """Returns a score as its metric shows it; a dash where a part was not asked."""
    return "–" if value is None else f"{row['scale'] * value:.1f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
