"""A run over two nodes by ssh, both of which are this machine: the losses of one launcher, and what the doctor says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from small_project import losses, start

from mmmoe.stages.ledger import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))

from remote_toy import make_ssh

pytestmark = pytest.mark.slow

SHORT = ["evaluation=null", "engine.kind=local"]


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    make_ssh(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "hosts"
    file.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    return file


def _finish(process, status=0):
    said = process.communicate(timeout=400)[0].decode()
    assert process.returncode == status, said
    return " ".join(said.split())


def test_two_nodes_train_as_one_does(project, hosts, tmp_path):
    cache = f"cache={yaml.safe_load(project.read_text())['cache']}"
    _finish(start("run", project, f"runs={tmp_path}/one", cache, *SHORT, "engine.processes=2"))
    arguments = ["launch", project, f"runs={tmp_path}/two", cache, *SHORT, "--hostfile", hosts, "--launcher", "ssh"]
    said = _finish(start(*arguments))
    assert "process 0 on" in said
    for stage in ("align", "mole"):
        assert losses(tmp_path / "two/small", stage) == losses(tmp_path / "one/small", stage)
    events = [event["event"] for event in RunFolder.open(tmp_path / "two/small").events()]
    assert events[:3] == ["created", "launched", "resumed"]
    assert events[-1] == "finished"
    assert (tmp_path / "two/small/report.html").is_file()


def test_the_doctor_names_the_node_that_is_off(hosts):
    hosts.write_text(hosts.read_text() + "off slots=1\n")
    said = _finish(start("doctor", "--hostfile", hosts), status=2)
    assert "No route to host" in said
    assert said.count("all_reduce") == 2
