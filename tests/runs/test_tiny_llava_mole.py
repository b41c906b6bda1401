"""A whole small run: every stage, what moved in it, the evaluation, the report, the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mmmoe.engine.checkpoint import read
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.stages.ledger import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(project):
    """The finished run."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "mmmoe.cli", "run", str(project)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(yaml.safe_load(project.read_text())["runs"]) / "small"


def test_all_stages_are_in_the_ledger_in_order(run):
    events = RunFolder.open(run).events()
    assert [e["stage"] for e in events if e["event"] == "stage_done"] == ["language", "align", "mole"]
    assert events[-1]["event"] == "finished"


def _start_of(run, stage):
    """Returns the canonical tensors a stage began with."""
    spec = RunFolder.open(run).spec()
    names = [s.name for s in spec.stages]
    model = build_model(spec.model, spec.seed)
    before = names[: names.index(stage)]
    for s in spec.stages[: len(before) + 1]:
        add_adapters(model, s.adapters, spec.seed)
    tensors = {canonical(name): value.clone() for name, value in model.state_dict().items()}
    if before:
        tensors.update(read(run / "stages" / before[-1] / "final").tensors)
    return tensors


@pytest.mark.parametrize(
    ("stage", "moving"),
    [
        ("language", ("language.",)),
        ("align", ("connector.", "bounds.")),
        ("mole", ("connector.", "bounds.", ".lora.", ".experts.", ".router.")),
    ],
)
def test_exactly_the_declared_parameters_move(run, stage, moving):
    start, end = _start_of(run, stage), read(run / "stages" / stage / "final").tensors
    moved = {name for name in end if not (end[name] == start[name]).all()}
    declared = {
        name for name in end if name.startswith(moving) or any(part in name for part in moving if part[0] == ".")
    }
    if stage != "language":
        declared = {name for name in declared if not name.startswith("language.") or any(p in name for p in moving)}
    assert moved <= declared
    # B starts at zero, so A and, in the un-gated rule, a router whose loads are even move late; all the rest must have.
    assert {name for name in declared if not name.endswith("_ERD") and ".router." not in name} <= moved


def test_metrics_tell_source_balance_and_load(run):
    row = json.loads((run / "stages/mole/metrics.jsonl").read_text().splitlines()[-1])
    assert set(row["losses"]) == {"shapes", "colours"}
    assert len(row["balance"]) == 2
    by_modality = row["load"]["shapes"]
    assert set(by_modality) == {"text", "image"}
    assert all(set(layers) == {"0", "1"} for layers in by_modality.values())
    assert all(len(load) == 3 for layers in by_modality.values() for load in layers.values())
    assert all(0.0 <= share <= 1.0 for share in row["entropy"])
    assert row["samples"] == 8


def test_scores_have_chance_majority_blind_and_untrained(run):
    rows = json.loads((run / "evaluation/scores.json").read_text())
    assert {row["variant"] for row in rows} == {"trained", "blind", "untrained"}
    assert all(row["chance"] == 0.5 and row["n"] == 12 for row in rows)


def test_report_is_one_offline_page(run):
    page = (run / "report.html").read_text()
    assert "mole" in page
    assert 'src="http' not in page
    assert "data:image" in page


def test_a_second_run_takes_the_language_stage_from_the_cache(run, project, mmmoe):
    status, said = mmmoe(
        "run", project, "evaluation=null", "stages.align.training.steps=1", "stages.mole.training.steps=1"
    )
    assert status == 0, said
    again = RunFolder.open(run.with_name("small-2"))
    assert again.done()["language"]["reused"] is True
    first, second = (read(r / "stages/language/final").tensors for r in (run, again.path))
    assert all((first[name] == second[name]).all() for name in first)


def test_eval_and_report_work_on_a_finished_run(run, mmmoe):
    status, said = mmmoe("eval", run, "evaluation.limit=4", "evaluation.blind=false", "evaluation.untrained=false")
    assert status == 0, said
    assert "partial" in said
    status, said = mmmoe("report", run)
    assert status == 0
    assert "report.html" in said


def test_a_crash_between_a_stages_last_file_and_its_ledger_line_repeats_nothing(run, tmp_path, mmmoe):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if '"stage_started"' in line)
    (copy / "ledger.jsonl").write_text("".join(lines[: last + 1]))
    before = (copy / "stages/mole/metrics.jsonl").read_bytes()
    status, said = mmmoe("work", copy, "evaluation=null")
    assert status == 0, said
    assert list(RunFolder.open(copy).done()) == ["language", "align", "mole"]
    assert (copy / "stages/mole/metrics.jsonl").read_bytes() == before


def test_other_base_weights_are_refused_when_the_model_is_built_again(run, monkeypatch):
    from mmmoe.stages import handover

    monkeypatch.setattr(handover, "base_fingerprint", lambda part: "others")
    with pytest.raises(ValueError, match=r"mole/final was trained on other base weights .*put those back"):
        handover.rebuild(run / "stages/mole/final")


def test_another_suite_is_evaluated_on_the_answers_that_are_there(run, project, mmmoe, tmp_path):
    from mmmoe.evaluation.scores import read_scores

    [benchmark] = yaml.safe_load(project.read_text())["evaluation"]["benchmarks"]
    suite = {"benchmarks": [benchmark | {"name": "again"}], "bootstrap": 100, "untrained": False, "limit": 8}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    status, said = mmmoe("eval", run, f"suite={tmp_path / 'suite.yaml'}")
    assert status == 0, said
    assert "16 of 16 answers were known already" in said
    rows = {row.variant: row for row in read_scores(run / "evaluation_partial" / "scores.json")}
    assert {name: (row.benchmark, row.n, row.reused) for name, row in rows.items()} == {
        "trained": ("again", 8, 8),
        "blind": ("again", 8, 8),
    }
    status, said = mmmoe("compare", run, run / "evaluation")
    assert status == 0, said
    assert "+0.0" in said
    status, said = mmmoe("compare", run, run / "evaluation_partial", "again")
    assert status == 2
    assert "has no benchmark 'again'" in said


def test_batches_are_timed_against_single_questions(run, mmmoe):
    status, said = mmmoe("bench", "evaluation", f"run={run}", "limit=8", "batch=8", "rounds=1")
    assert status == 0, said
    assert "choices: 8 of 8 answers are the same in both ways" in said
