"""Several runs that differ in a few keys, carried out one after the other and put side by side."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from mmmoe import paths
from mmmoe.config.load import dump, load
from mmmoe.config.spec import Spec
from mmmoe.evaluation.scores import SCORES_FILE, read_scores
from mmmoe.log import console, logger
from mmmoe.report.experiment import ExperimentRow, write_experiment
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.preflight import preflight
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.start import carry_out, start_again


class VariantSpec(Spec):
    """One run of an experiment."""

    name: str
    config: str | None = None
    """The run it starts from, if not the experiment's."""
    overrides: list[str] = []
    """What differs from that configuration, as `key=value`."""


class ExperimentSpec(Spec):
    """A configuration and its variants."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    config: str
    """The run that variants start from."""
    overrides: list[str] = []
    """What all variants change in it."""
    variants: list[VariantSpec] = Field(min_length=2)
    runs: str = "runs"
    """Folder that the experiment's folder is made in."""


def run_experiment(experiment: ExperimentSpec) -> int:
    """Runs what is not finished yet and writes the table; returns the exit status.

    The experiment's folder is `runs/<name>`: called again, it goes on where it stopped.

    Raises:
        ValueError: when a variant cannot run, or the folder holds variants of another declaration.
    """
    folder = Path(experiment.runs) / experiment.name
    specs = {v.name: _spec_of(experiment, v) for v in experiment.variants}
    for spec in specs.values():
        preflight(spec)
    for number, (name, spec) in enumerate(specs.items(), 1):
        logger().info("variant %d of %d: %s", number, len(specs), name)
        status = _one(spec, folder / _slug(name))
        if status:
            return status
    rows = [row for name in specs for row in _rows(name, folder / _slug(name))]
    console.print(f"table and plot: {write_experiment(folder, rows)}", soft_wrap=True)
    return 0


def _spec_of(experiment: ExperimentSpec, variant: VariantSpec) -> RunSpec:
    config = paths.resolve(variant.config or experiment.config)
    return load(config, RunSpec, [*experiment.overrides, *variant.overrides])


def _one(spec: RunSpec, path: Path) -> int:
    if not path.exists():
        return carry_out(spec, RunFolder.create(spec, path))
    folder = RunFolder.open(path)
    if dump(folder.spec()) != dump(spec):
        raise ValueError(f"{path} was made from another declaration; remove it, or set runs=<another folder>")
    if any(event["event"] == "finished" for event in folder.events()):
        return 0
    return start_again(path, [])


def _rows(name: str, path: Path) -> list[ExperimentRow]:
    scores = read_scores(path / "evaluation" / SCORES_FILE)
    # A domain's score is the mean of its benchmarks', so points and sums cannot be among them.
    return [ExperimentRow.of(name, row) for row in scores if row.variant == "trained" and row.is_share]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
