"""The Slurm job of `mmmoe launch`: on a real Slurm of two nodes where it is installed, else its script alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nodes import cluster
from slurm_nodes import Queue, missing, slurm
from timeline import PLACES, check_same, events_of, overrides, passed

from mmmoe.config.load import load
from mmmoe.stages.run import STOP_FILE
from mmmoe.stages.slurm import SCRIPT, VARIABLES, Slurm
from mmmoe.stages.spec import RunSpec

SETTINGS = ["engine.kind=deepspeed", "evaluation=null"]


@pytest.mark.parametrize(
    "patient", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.long)]
)
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_job_of_two_nodes_that_is_stopped_saves_is_queued_again_and_equals_one_machine(
    project, warm, tmp_path, patient
):
    whole, run, said = tmp_path / "whole/runs/small", tmp_path / "job/runs/small", tmp_path / "said"
    warm.start("run", project, *overrides(tmp_path / "whole", *SETTINGS)).finish()
    with cluster(tmp_path / "nodes") as nodes, slurm(nodes, tmp_path / "slurm") as queue:
        settings = [*overrides(tmp_path / "job", *SETTINGS), "engine.processes=1"]
        command = [sys.executable, "-m", "mmmoe.cli", "launch", project, *settings, "--slurm", "nodes=2"]
        process = nodes[0].start(command, said, queue.environment)
        assert process.wait(300) == 0, said.read_text()
        job = re.search(r"Submitted batch job (\d+)", said.read_text())[1]
        wait_until(lambda: passed(run, 0) >= PLACES.index(("mole", 2)), run, queue)
        queue.ask("scancel", "--signal=TERM", job)  # what --signal=TERM@120 does before the time is over
        wait_until(lambda: events_of(run)[-1]["event"] == "stopped", run, queue)
        wait_until(lambda: "PENDING" in queue.ask("squeue", "--noheader", "--format=%T"), run, queue)
        if not patient:  # Slurm lets a job that is queued again wait for two minutes; the script can be sent anew
            queue.ask("scancel", job)
            job = queue.ask("sbatch", "--parsable", f"--chdir={run}", run / SCRIPT).strip()
        wait_until(lambda: events_of(run)[-1]["event"] == "finished", run, queue)
        wait_until(lambda: queue.ask("squeue", "--noheader") == "", run, queue)
        assert "ExitCode=0:0" in queue.ask("scontrol", "show", "job", job)
    check_same(run, whole)


def wait_until(holds, run: Path, queue: Queue, within_s: float = 300) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "".join(path.read_text() for path in run.glob("logs/*")) + queue.story()
        time.sleep(0.05)


@pytest.fixture
def job(project, tmp_path):
    """Runs the script under a `srun` that ends as told; returns (exit status, commands that were run)."""
    tools, record, folder = tmp_path / "bin", tmp_path / "record", tmp_path / "a folder; touch hacked"
    tools.mkdir()
    folder.mkdir()
    for name, body in {"srun": 'exit $(sed -n "$(grep -c ^srun $R)p" $S)', "scontrol": "exit 0"}.items():
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> $R\n{body}\n')
        (tools / name).chmod(0o755)

    def run(*statuses: int, restarts: int = 0, stop_file: bool = False) -> tuple[int, list[str]]:
        spec = load(project, RunSpec, [f"engine.restarts={restarts}"])
        script = tmp_path / "launch.sbatch"
        (folder / VARIABLES).touch()
        script.write_text(Slurm.of(["nodes=2"]).script(spec, folder, ["engine.zero=2"]))
        record.write_text("")
        (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        if stop_file:
            (folder / STOP_FILE).touch()
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "R": str(record), "S": str(tmp_path / "statuses")}
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        done = subprocess.run(["bash", script], env={**env, "SLURM_JOB_ID": "7"}, cwd=tmp_path)
        assert not list(tmp_path.rglob("hacked"))
        return done.returncode, record.read_text().splitlines()

    return run


@pytest.mark.parametrize("status", [0, 2, 3, 4, 5])
def test_script_ends_with_the_status_of_a_run_that_another_attempt_cannot_mend(job, status):
    found, commands = job(status, restarts=3)
    assert found == status
    assert len(commands) == 1
    assert commands[0].startswith("srun ")
    assert commands[0].endswith("engine.zero=2")


def test_script_queues_the_job_again_when_the_run_was_stopped(job):
    found, commands = job(75)
    assert found == 75
    assert commands[1:] == ["scontrol requeue 7"]


def test_script_leaves_a_run_stopped_that_somebody_stopped_by_the_file(job):
    found, commands = job(75, stop_file=True)
    assert found == 75
    assert len(commands) == 1


def test_script_starts_the_run_again_as_often_as_declared(job):
    found, commands = job(1, 137, 0, restarts=2)
    assert (found, len(commands)) == (0, 3)
    found, commands = job(1, 137, 0, restarts=1)
    assert (found, len(commands)) == (137, 2)
