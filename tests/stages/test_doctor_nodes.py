"""The doctor on other nodes: each thing that is ill names the node and the cure."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace

import pytest

from mmmoe.stages import doctor_nodes as module
from mmmoe.stages.doctor_nodes import Said, node_findings
from mmmoe.stages.hostfile import Host
from mmmoe.stages.probe import NodeReport, look

TWO = [Host("10.0.0.1", 2), Host("10.0.0.2", 2)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Cluster:
    """Answers commands as nodes would."""

    def __init__(self, ill=None, change=None, hello=None, clock=0.0, meeting=None):
        self.ill, self.change, self.hello = ill, change or {}, hello or Said(0, "", "", 0, 0)
        self.clock, self.meeting, self.met = clock, meeting, []

    def __call__(self, command, seconds, given):
        host, line = command[-2:]
        now = time.time()
        if line.startswith("date"):
            hello = self.hello if host == self.ill else Said(0, "", "", 0, 0)
            return replace(hello, out=f"{now + self.clock * (host == self.ill)}\n", began=now - 0.1, ended=now + 0.1)
        if " probe " in line:
            token = next(module.Path.cwd().glob(".doctor-*"))
            report = look(token)
            change = self.change if host == self.ill else {}
            return Said(0, "a library speaks first\n" + json.dumps(asdict(report) | change), "", now, now)
        self.met.append(host)
        if self.meeting is not None and host == self.ill:
            return self.meeting
        return Said(0, "gloo: all_reduce with 2 processes in 0.1 s\n", "", now, now)


def ill_ones(cluster, hosts=TWO):
    found = list(node_findings(hosts, cluster))
    return [finding for finding in found if not finding.is_well], found


def test_sound_nodes_meet(tmp_path):
    ill, found = ill_ones(Cluster())
    assert ill == []
    assert sum("all_reduce" in finding.found for finding in found) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_node_out_of_reach_is_named_and_the_others_meet_without_it():
    hosts = [*TWO, Host("10.0.0.3", 2)]
    cluster = Cluster("10.0.0.2", hello=Said(255, "", "ssh: connect to host 10.0.0.2: No route to host", 0, 0))
    (ill,), _ = ill_ones(cluster, hosts)
    assert (ill.what, ill.found) == ("10.0.0.2", "cannot be reached: ssh: connect to host 10.0.0.2: No route to host")
    assert "`ssh 10.0.0.2 true`" in ill.cure
    assert sorted(cluster.met) == ["10.0.0.1", "10.0.0.3"]


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        ({"python": "3.9.1"}, "versions", "python 3.9.1 (here "),
        ({"packages": {"torch": "1.0"}}, "versions", "torch 1.0 (here "),
        ({"source": "other"}, "mmmoe", "another state"),
        ({"disk_gb": 0.1}, "disk", "0.1 GiB free"),
        ({"token": ""}, "this folder", "not shared"),
        ({"gpus": 1}, "GPUs", "1 for 2 slots"),
    ],
)
def test_what_differs_on_a_node_is_told(change, what, found):
    ill, _ = ill_ones(Cluster("10.0.0.2", change))
    assert [finding.what for finding in ill] == [f"10.0.0.2: {what}"]
    assert found in ill[0].found
    assert ill[0].cure


def test_a_clock_that_is_off_is_a_warning():
    _, found = ill_ones(Cluster("10.0.0.2", clock=-60.0))
    clocks = {finding.what: finding for finding in found if "clock" in finding.what}
    assert clocks["10.0.0.1: clock"].found == "as here"
    off = clocks["10.0.0.2: clock"]
    assert off.is_well
    assert off.is_warning
    assert "60.0 s behind" in off.found


def test_a_slow_answer_is_no_wrong_clock():
    now = time.time()
    assert not module._clock("a", Said(0, f"{now}\n", "", now - 1, now + 29)).is_warning


def test_a_node_that_cannot_meet_the_others_is_named():
    refused = Said(2, "", "error: process 1 on b: no collective with the others: Connection refused\n", 0, 0)
    (ill,), _ = ill_ones(Cluster("10.0.0.2", meeting=refused))
    assert ill.what == "10.0.0.2: collective"
    assert "Connection refused" in ill.found
    assert "GLOO_SOCKET_IFNAME" in ill.cure


def test_a_node_without_the_project_is_told():
    with pytest.raises(ValueError, match="no report"):
        NodeReport.from_json("bash: python: not found")

    def run(command, seconds, given):
        is_probe = " probe " in command[-1]
        return Said(127 if is_probe else 0, "0", "env: python: No such file or directory" if is_probe else "", 0, 0)

    ill = [finding for finding in node_findings(TWO, run) if not finding.is_well]
    assert len(ill) == 2
    assert all("mmmoe does not run: env: python: No such file" in finding.found for finding in ill)
