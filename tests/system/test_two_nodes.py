"""Two machines with a network between them: a run trains on both, and survives one that is cut off."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nodes import Node, cluster, missing
from timeline import PLACES, check_same, overrides, passed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

DEADLINE_S = 12
SETTINGS = [
    "engine.kind=deepspeed",
    f"engine.deadline_s={DEADLINE_S}",
    "evaluation=null",
    "stages.mole.adapters.0.dropout=0",
    "stages.mole.adapters.1.dropout=0",
]
WORKER = "mmmoe.cli"
IMPATIENT = {"PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=2 -o ServerAliveCountMax=3"}
"""Without, ssh waits for a node that is cut off as long as TCP does, and pdsh with it."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[list[Node]]:
    with cluster(tmp_path_factory.mktemp("cluster") / "nodes") as found:
        yield found


@pytest.fixture(scope="module")
def hostfile(nodes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hosts") / "hostfile"
    path.write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    return path


@pytest.fixture(scope="module")
def whole(project, warm, tmp_path_factory) -> Path:
    """The run that two processes of one machine carry out."""
    folder = tmp_path_factory.mktemp("one_machine")
    warm.start("run", project, *overrides(folder, *SETTINGS)).finish()
    return folder / "runs/small"


def python(*words: object) -> list[object]:
    return [sys.executable, "-m", *words]


def deepspeed(hostfile: Path, *words: object) -> list[object]:
    """Returns DeepSpeed's own command, as its documentation has it; each process writes a log of its own, too."""
    logs = hostfile.with_name("logs")
    options = ["--hostfile", hostfile, f"--enable_each_rank_log={logs}", "--module"]
    return python("deepspeed.launcher.runner", *options, "mmmoe.cli", *words)


def ended(process, output: Path, within_s: float = 300) -> int:
    try:
        return process.wait(within_s)
    except Exception:
        process.kill()
        raise AssertionError(output.read_text()) from None


def workers(node: Node) -> list[psutil.Process]:
    return [process for process in node.processes(WORKER) if "launcher" not in " ".join(process.cmdline())]


def cut_in_mid_step(node: Node, run: Path, process, output: Path) -> float:
    """Pulls a node's cable when the last stage is under way; returns when."""
    while passed(run, 0) < PLACES.index(("mole", 3)):
        assert process.poll() is None, output.read_text()
        time.sleep(0.005)
    node.cut()
    return time.monotonic()


def test_deepspeed_over_two_nodes_trains_as_one_machine_and_survives_a_cut(
    project, warm, nodes, hostfile, whole, tmp_path
):
    run, output = tmp_path / "runs/small", tmp_path / "said"
    settings = [*overrides(tmp_path, *SETTINGS), "stages.mole.training.checkpoint.every=1"]
    process = nodes[0].start(deepspeed(hostfile, "run", project, *settings), output, IMPATIENT)
    began = cut_in_mid_step(nodes[1], run, process, output)
    try:
        survivors = [worker for node in nodes for worker in workers(node)]
        assert len(survivors) == 2
        psutil.wait_procs(survivors, DEADLINE_S + 5)
        assert [worker for worker in survivors if worker.is_running()] == [], output.read_text()
        assert time.monotonic() - began < DEADLINE_S + 2
        logs = "".join(path.read_text() for path in hostfile.with_name("logs").rglob("*") if path.is_file())
        said = " ".join((logs + output.read_text()).split())
        assert "process 0 on node1: process 1 on node2 has been silent for" in said
        assert "process 1 on node2: process 0 on node1 has not answered for" in said
        assert f"Go on with `LAUNCHER ... mmmoe.cli resume {run}`" in said
        assert ended(process, output, 60) != 0
    finally:
        nodes[1].mend()
    warm.start("resume", run, "engine.processes=1", "engine.kind=local").finish()
    check_same(run, whole, rtol=1e-5)


def test_launch_over_two_nodes_equals_one_machine_bit_for_bit(project, nodes, hostfile, whole, tmp_path):
    output = tmp_path / "said"
    command = python("mmmoe.cli", "launch", project, *overrides(tmp_path, *SETTINGS), "--hostfile", hostfile)
    assert ended(nodes[0].start(command, output), output) == 0, output.read_text()
    assert "silent" not in output.read_text()
    check_same(tmp_path / "runs/small", whole)
    assert [worker for node in nodes for worker in workers(node)] == []


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["pdsh", "ssh"])
def test_launch_goes_on_by_itself_without_a_node_that_was_cut_off(project, nodes, hostfile, whole, tmp_path, launcher):
    run, output = tmp_path / "runs/small", tmp_path / "said"
    settings = [*overrides(tmp_path, *SETTINGS), "stages.mole.training.checkpoint.every=1", "engine.restarts=1"]
    options = ["--hostfile", hostfile, "--launcher", launcher]
    process = nodes[0].start(python("mmmoe.cli", "launch", project, *settings, *options), output)
    cut_in_mid_step(nodes[1], run, process, output)
    try:
        assert ended(process, output) == 0, output.read_text()
    finally:
        nodes[1].mend()
    said = " ".join(output.read_text().split())
    assert "left out, since they do not answer: node2" in said
    check_same(run, whole, rtol=1e-5)


def test_doctor_names_a_node_that_cannot_be_reached(nodes, hostfile, tmp_path):
    output = tmp_path / "said"
    nodes[1].cut()
    try:
        process = nodes[0].start(python("mmmoe.cli", "doctor", "--hostfile", hostfile), output, {"COLUMNS": "200"})
        assert ended(process, output) == 2, output.read_text()
    finally:
        nodes[1].mend()
    said = output.read_text()
    assert any("node2" in line and ("reach" in line or "answer" in line) for line in said.splitlines()), said


@pytest.mark.long
def test_doctor_finds_two_sound_nodes_well(nodes, hostfile, tmp_path):
    output = tmp_path / "said"
    process = nodes[0].start(python("mmmoe.cli", "doctor", "--hostfile", hostfile), output, {"COLUMNS": "200"})
    assert ended(process, output) == 0, output.read_text()
    assert all(node.name in output.read_text() for node in nodes)
