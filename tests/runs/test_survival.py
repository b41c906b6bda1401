"""A killed run that skips steps and keeps its best checkpoint comes out as one that nobody disturbed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_project import start

from mmmoe.engine.checkpoint import read
from mmmoe.engine.step_folders import all_steps
from mmmoe.evaluation.scores import read_scores

pytestmark = pytest.mark.slow

STAGE = "stages.mole"
# Any step whose loss is above the last accepted one's is skipped: about half of them.
FAULTS = f"{STAGE}.training.faults={{spike: 1.000001, window: 1, budget: 20}}"
BEST = [f"{STAGE}.training.checkpoint.keep_best=shape", f"{STAGE}.evaluate={{every: 1, limit: 8}}"]
SETTINGS = [FAULTS, *BEST, f"{STAGE}.training.steps=14", f"{STAGE}.training.checkpoint.keep=1"]
OFTEN = [f"{STAGE}.training.checkpoint.every=null", f"{STAGE}.training.checkpoint.minutes=0.000001"]


def run(project, name, *overrides):
    runs = Path(yaml.safe_load(project.read_text())["runs"]).with_name(name)
    return runs / "small", start("run", project, f"runs={runs}", *SETTINGS, *overrides)


def finish(process):
    said = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, said
    return said


def told(folder):
    """Returns what a stage's lines say of its steps, and its best checkpoint."""
    rows = [json.loads(line) for line in (folder / "stages/mole/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    lines = [(row["loss"], row["grad_norm"], row.get("skipped"), row["evaluation"]) for row in rows]
    return lines, read(folder / "stages/mole/best")


def test_skips_and_the_best_checkpoint_survive_a_kill(project, mmmoe):
    whole, process = run(project, "whole_best")
    said = finish(process)
    killed, process = run(project, "killed_best", *OFTEN)
    deadline = time.monotonic() + 600
    checkpoints = killed / "stages/mole/checkpoints"
    while not any(int(path.name[5:]) >= 7 for path in all_steps(checkpoints)):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    finish(start("resume", killed))

    lines, best = told(whole)
    again, other = told(killed)
    assert again == lines
    assert (other.state.step, other.state.updates) == (best.state.step, best.state.updates)
    assert other.tensors.keys() == best.tensors.keys()
    assert all(torch.equal(other.tensors[name], best.tensors[name]) for name in best.tensors)
    skipped = [step for step, line in enumerate(lines, 1) if line[2]]
    assert 0 < len(skipped) < 14
    assert f"step {skipped[0]} is skipped (1 of 20)" in " ".join(said.split())

    scores = [line[3]["shape"] for line in lines]
    assert best.state.step == 1 + scores.index(max(scores))
    final = read(whole / "stages/mole/final")
    assert best.tensors.keys() == final.tensors.keys()
    assert not checkpoints.exists()

    status, said = mmmoe("eval", whole / "stages/mole/best", "evaluation.limit=8")
    assert status == 0, said
    [row] = [
        row
        for row in read_scores(whole / "stages/mole/best_evaluation_partial/scores.json")
        if (row.variant, row.benchmark) == ("trained", "shape")
    ]
    assert row.score == pytest.approx(max(scores))
