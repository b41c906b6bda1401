"""Restarts: what may help is tried again, what is a mistake is not, and lost nodes are left out."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages import nodes as nodes_module
from mmmoe.stages.hostfile import Host, Launcher, read_hostfile
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.nodes import Nodes
from mmmoe.stages.restart import with_restarts
from mmmoe.stages.spec import RunSpec

HOSTS = [Host("10.0.0.1", 2), Host("10.0.0.2", 2), Host("10.0.0.3", 4)]


@pytest.fixture
def spec():
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, ["engine.restarts=2"])


@pytest.fixture
def folder(spec, tmp_path):
    return RunFolder.create(spec, tmp_path / "run")


def test_a_killed_run_is_tried_again_and_the_ledger_says_so(folder):
    statuses = iter([137, 1, 0])
    assert with_restarts(3, folder, lambda: next(statuses)) == 0
    events = [(e["attempt"], e["status"]) for e in folder.events() if e["event"] == "restarted"]
    assert events == [(1, 137), (2, 1)]


@pytest.mark.parametrize("status", [0, 2, 3, 4, 5, 75, 76])
def test_what_would_end_the_same_way_is_not(folder, status):
    tried = []
    assert with_restarts(3, folder, lambda: tried.append(1) or status) == status
    assert len(tried) == 1


def test_attempts_are_counted_and_none_is_made_by_default(folder):
    for restarts in (0, 2):
        tried = []
        assert with_restarts(restarts, folder, lambda tried=tried: tried.append(1) or 1) == 1
        assert len(tried) == 1 + restarts


class Cluster:
    """Nodes that answer or not, and what each attempt was given."""

    def __init__(self, monkeypatch, folder, statuses, alive):
        self.alive, self.worlds, self.ports = alive, [], []

        def run(attempt, launcher):
            self.worlds.append([host.name for host in read_hostfile(attempt.hostfile)])
            self.ports.append(attempt.port)
            status = statuses.pop(0)
            if status == 0:
                folder.record("finished")
            return status

        monkeypatch.setattr(nodes_module._Attempt, "run", run)
        monkeypatch.setattr(nodes_module, "answers", lambda name: name in self.alive)


def test_a_node_that_does_not_answer_is_left_out(spec, folder, monkeypatch, capsys):
    cluster = Cluster(monkeypatch, folder, [255, 0], ["10.0.0.1", "10.0.0.3"])
    assert Nodes(HOSTS, Launcher.ssh).start(spec, folder, []) == 0
    assert cluster.worlds == [["10.0.0.1", "10.0.0.2", "10.0.0.3"], ["10.0.0.1", "10.0.0.3"]]
    assert cluster.ports[0] != cluster.ports[1]


def test_a_node_that_answers_again_is_taken_again(spec, folder, monkeypatch):
    cluster = Cluster(monkeypatch, folder, [1, 1, 0], ["10.0.0.2"])
    cluster_answers = iter([["10.0.0.2"], [host.name for host in HOSTS]])
    monkeypatch.setattr(
        nodes_module, "answers", lambda name: name in (cluster.alive if name != HOSTS[0].name else refresh())
    )

    def refresh():
        cluster.alive = next(cluster_answers)
        return cluster.alive

    assert Nodes(HOSTS, Launcher.ssh).start(spec, folder, []) == 0
    assert [len(world) for world in cluster.worlds] == [3, 1, 3]


def test_too_few_nodes_for_the_experts_are_told_and_not_tried(spec, folder, monkeypatch, capfd):
    engine = spec.engine.model_copy(update={"ep_size": 4})
    cluster = Cluster(monkeypatch, folder, [1], ["10.0.0.1"])
    assert Nodes(HOSTS, Launcher.ssh).start(spec.model_copy(update={"engine": engine}), folder, []) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert len(cluster.worlds) == 1
    assert "2 processes cannot go on: engine.ep_size: 4 must divide the number of processes, 2" in said
    assert "left out, since they do not answer: 10.0.0.2, 10.0.0.3" in said


def test_no_node_at_all_is_the_end(spec, folder, monkeypatch, capfd):
    Cluster(monkeypatch, folder, [255], [])
    assert Nodes(HOSTS, Launcher.ssh).start(spec, folder, []) == 255
    assert "no node answers" in capfd.readouterr().err


def test_a_launcher_that_says_all_is_well_of_a_run_that_did_not_finish_is_not_believed(spec, folder, monkeypatch):
    monkeypatch.setattr(nodes_module._Attempt, "run", lambda attempt, launcher: 0)
    monkeypatch.setattr(nodes_module, "answers", lambda name: False)
    assert Nodes(HOSTS, Launcher.ssh).start(spec, folder, []) == 1


def test_a_launcher_that_does_not_say_that_the_run_saved_and_stopped_is_not_believed(spec, folder, monkeypatch):
    monkeypatch.setattr(nodes_module._Attempt, "run", lambda attempt, launcher: folder.record("stopped") or 76)
    assert Nodes(HOSTS, Launcher.ssh).start(spec, folder, []) == 75
