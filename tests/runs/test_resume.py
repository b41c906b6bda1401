"""A killed and resumed run equals one that was not: bit for bit at its world size, within rounding at another."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_project import losses, start

from mmmoe.engine.checkpoint import read
from mmmoe.engine.step_folders import all_steps
from mmmoe.stages.ledger import RunFolder

pytestmark = pytest.mark.slow

DEEPSPEED = ["engine.kind=deepspeed", "engine.processes=2", "evaluation=null", "stages.mole.training.steps=14"]


def _finish(process, *, status=0):
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == status, said
    return said


def _run(project, name, *overrides):
    runs = Path(yaml.safe_load(project.read_text())["runs"]).with_name(name)
    return runs / "small", start("run", project, f"runs={runs}", *DEEPSPEED, *overrides)


def _kill_in_mole(run, process):
    """Kills everything at once when the second checkpoint of stage 2 stands."""
    deadline = time.monotonic() + 240
    while len(all_steps(run / "stages/mole/checkpoints")) < 2:
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # the children ask the kernel to die with their parent
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def whole(project):
    """The run that nobody disturbs: DeepSpeed, two processes."""
    run, process = _run(project, "whole")
    _finish(process)
    return run


@pytest.fixture(scope="module")
def killed(project):
    """A run killed in the middle of stage 2."""
    run, process = _run(project, "killed")
    _kill_in_mole(run, process)
    return run


def test_killed_run_resumes_bit_for_bit(whole, killed, tmp_path):
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(killed, run)
    assert "mole" not in RunFolder.open(run).done()
    aligned = (run / "stages/align/final/model.safetensors").stat().st_mtime_ns
    said = _finish(start("resume", run))
    assert "done: language, align" in said
    assert (run / "stages/align/final/model.safetensors").stat().st_mtime_ns == aligned
    starts = [e for e in RunFolder.open(run).events() if e["event"] == "stage_started" and e["stage"] == "mole"]
    assert starts[-1]["step"] >= 2
    assert losses(run, "mole") == losses(whole, "mole")
    expected, found = (read(r / "stages/mole/final").tensors for r in (whole, run))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_killed_run_resumes_within_rounding_at_another_world_size_and_engine(project, tmp_path):
    # Dropout differs by process, so rounding is the only difference only without it.
    plain = ("stages.mole.adapters.0.dropout=0", "stages.mole.adapters.1.dropout=0")
    whole, process = _run(project, "plain_whole", *plain)
    _finish(process)
    run, process = _run(project, "plain_killed", *plain)
    _kill_in_mole(run, process)
    _finish(start("resume", run, "engine.processes=1", "engine.kind=local"))
    torch.testing.assert_close(
        torch.tensor(losses(run, "mole")), torch.tensor(losses(whole, "mole")), rtol=2e-5, atol=0
    )


def test_ctrl_c_saves_and_says_how_to_go_on(project, whole):
    run, process = _run(project, "stopped")
    deadline = time.monotonic() + 240
    while not (run / "stages/mole/metrics.jsonl").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the launcher and its children alike
    said = _finish(process, status=75)
    assert "mmmoe resume" in said
    stopped = [e for e in RunFolder.open(run).events() if e["event"] == "stopped"]
    assert stopped[-1]["stage"] == "mole"
    _finish(start("resume", run))
    assert losses(run, "mole") == losses(whole, "mole")
