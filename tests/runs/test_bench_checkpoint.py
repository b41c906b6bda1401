"""What the benchmark of checkpoints and resumes measures, and that a run which fails is told."""

from __future__ import annotations

import json

import pytest

from mmmoe.stages.bench_checkpoint import _first_step, bench_checkpoint
from mmmoe.stages.ledger import LEDGER_FILE, SPEC_FILE, RunFolder


def test_the_first_step_after_a_resume_is_the_one_beyond_where_it_starts(tmp_path):
    (tmp_path / SPEC_FILE).touch()
    (tmp_path / LEDGER_FILE).touch()
    folder = RunFolder(tmp_path)
    folder.record("stage_started", stage="mole", step=0)
    lines = tmp_path / "stages/mole/metrics.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)))
    is_done = _first_step(tmp_path, "mole")
    # The lines of the killed run say nothing before it is known where the resumed one goes on.
    assert not is_done()
    folder.record("stage_started", stage="mole", step=4)
    lines.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 5)))
    assert not is_done()
    with lines.open("a") as file:
        file.write(json.dumps({"step": 5}) + "\n")
    assert is_done()


def test_a_stage_without_a_rhythm_is_refused(project):
    with pytest.raises(ValueError, match=r"its last stage has checkpoint\.every null"):
        bench_checkpoint([f"config={project}", "stages.mole.training.checkpoint.every=null"])


@pytest.mark.slow
def test_a_small_run_is_measured(project):
    results = bench_checkpoint([f"config={project}", "rounds=1", "resumes=1"])
    share, blocked, written, size, resumed = results
    assert share.bound == 1.05
    assert share.ratio > 1
    assert share.ratio == pytest.approx(share.value / share.versus_value)
    assert 0 < blocked.value <= written.value
    # Weights and two moments, and what describes them.
    assert size.ratio > 3
    assert (resumed.bound, resumed.versus_value) == (1.0, 15_000)
    assert resumed.value > 100
