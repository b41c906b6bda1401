"""The launcher of one machine: the first bad status comes back and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmmoe.engine.spec import EngineSpec
from mmmoe.stages import children
from mmmoe.stages import launch as module
from mmmoe.stages.children import Child, wait_for


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Replaces the worker's command by a short script and returns a launch of it."""

    real = subprocess.Popen

    def call(script: str, processes: int = 2) -> int:
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


def test_last_words_are_those_of_this_attempt(world, caplog, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    monkeypatch.setattr(children.logger(), "propagate", True)
    assert world("import os, sys; print('long ago'); sys.exit(int(os.environ['RANK']) * 3)") == 3
    assert "long ago" in caplog.text
    caplog.clear()
    assert world("import os, sys; print('just now'); sys.exit(int(os.environ['RANK']) * 3)") == 3
    assert "just now" in caplog.text
    assert "long ago" not in caplog.text


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


def test_a_node_starts_its_share_of_a_run(monkeypatch, tmp_path):
    started = []
    real = subprocess.Popen

    def popen(command, env, **options):
        started.append(env)
        return real([sys.executable, "-c", ""], env=env, **options)

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    team = module.Team(first=4, size=2, world=6, address="10.0.0.1", port=29500)
    assert module.launch(EngineSpec(kind="local"), [], tmp_path / "logs", team) == 0
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [tuple(env[name] for name in names) for env in started] == [
        ("4", "0", "6", "10.0.0.1", "29500"),
        ("5", "1", "6", "10.0.0.1", "29500"),
    ]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank4.log", "rank5.log"]


def test_a_request_to_stop_is_no_failure_that_a_restart_could_mend(world, monkeypatch):
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    assert world("import time; time.sleep(60)") == 75


def test_others_that_were_asked_to_stop_do_not_hide_the_one_that_died(world, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 8.0)
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)"
    )
    assert world(script) == 128 + 9


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (["sys.exit(75)"], 75),
        (["os._exit(0)"], 0),
        (["sys.exit(1)"], 76),
        (["os.kill(os.getpid(), 9)"], 76),
        (["sys.exit(1)", "os.kill(os.getpid(), 15)"], 76),
        (["sys.exit(1)", "sys.exit(75)"], 75),
        (["sys.exit(1)", "sys.exit(4)"], 4),
    ],
)
def test_only_a_run_that_says_so_has_saved_when_it_is_asked_to_stop(ends, status):
    children = []
    for number, end in enumerate(ends):
        first = "signal.signal(signal.SIGTERM, signal.SIG_DFL); " if "15" in end else ""
        script = (
            "import os, signal, sys, time\n"
            f"def end(*_):\n    {first}{end}\n"
            "signal.signal(signal.SIGTERM, end)\nprint(flush=True)\ntime.sleep(60)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"\n"
        children.append(Child(f"process {number}", process, process.terminate))
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    assert wait_for(children, 20.0) == status
