"""The launcher of one machine: the first bad status comes back and nobody is left behind."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mmmoe.engine.spec import EngineSpec
from mmmoe.stages import launch as module


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Replaces the worker's command by a short script and returns a launch of it."""

    def call(script: str, processes: int = 2) -> int:
        real = subprocess.Popen

        def popen(command, **options):
            return real([sys.executable, "-c", script], **options)

        monkeypatch.setattr(module.subprocess, "Popen", popen)
        return module.launch(EngineSpec(kind="local", processes=processes), [], tmp_path / "logs")

    return call


def test_all_well(world):
    assert world("import os; assert os.environ['WORLD_SIZE'] == '2'") == 0


def test_the_first_bad_status_comes_back(world, tmp_path):
    assert world("import os, sys; sys.exit(2 if os.environ['RANK'] == '1' else 0)") == 2


def test_the_others_are_stopped_when_one_fails(world, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    began = time.monotonic()
    assert world("import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(100)") == 3
    assert time.monotonic() - began < 30


def test_a_killed_process_counts_as_failed(world, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    status = world("import os, signal; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)")
    assert status == 128 + 9


def test_output_of_the_other_processes_is_kept(world, tmp_path):
    assert world("import os; print('I am', os.environ['RANK'])") == 0
    assert (tmp_path / "logs" / "rank1.log").read_text() == "I am 1\n"


def test_a_taken_port_is_refused_before_anything_starts(tmp_path):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        spec = EngineSpec(processes=2, port=other.getsockname()[1])
        with pytest.raises(ValueError, match="is taken"):
            module.launch(spec, [], tmp_path)
    assert not list(tmp_path.iterdir())
