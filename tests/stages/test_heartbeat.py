"""Heartbeats of two real processes: whatever a survivor hangs in, it ends within the deadline and says who was lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmmoe import env
from mmmoe.stages.status import LOST_PEER

pytestmark = pytest.mark.slow

TOY = Path(__file__).parent / "heartbeat_toy.py"
DEADLINE_S = 6.0


def pair(how):
    """Starts two processes and returns them when both wait in the run."""
    port = env.free_port()
    both = [
        subprocess.Popen(
            [sys.executable, str(TOY), str(DEADLINE_S), how],
            env=env.child_environment(rank, 2, port, 1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(both):
        assert process.stdout.readline() == f"ready {rank}\n", process.communicate()
    return both


def end_of(process):
    """Returns what a survivor said, and after how many seconds it ended."""
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == LOST_PEER, said
    return said, time.monotonic() - began


@pytest.mark.parametrize("lost", [0, 1])
def test_a_frozen_process_ends_the_other_within_the_deadline(lost):
    both = pair("wait")
    both[lost].send_signal(signal.SIGSTOP)
    try:
        said, seconds = end_of(both[1 - lost])
    finally:
        both[lost].kill()
        both[lost].communicate()
    assert seconds < DEADLINE_S
    assert f"process {1 - lost} on {env.host()}: process {lost} on {env.host()}" in said
    assert "This process stops in stage mole, after step 7" in said
    assert "mmmoe resume runs/toy" in said


def test_a_killed_process_is_named_by_the_other():
    both = pair("wait")
    time.sleep(DEADLINE_S / 4)  # some beats later
    both[1].kill()
    said, seconds = end_of(both[0])
    both[1].communicate()
    assert seconds < DEADLINE_S
    assert f"process 1 on {env.host()} ended" in said
    assert "(last heard in stage mole, after step 7)" in said


def test_a_process_that_fails_alone_is_named_by_the_other():
    both = pair("mistake")
    said, seconds = end_of(both[0])
    assert seconds < DEADLINE_S
    assert f"process 1 on {env.host()} ended" in said
    assert "a mistake of process 1 alone" in both[1].communicate(timeout=60)[1]


def test_work_longer_than_the_deadline_on_one_process_raises_no_alarm():
    both = pair("busy")
    for process in both:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        assert "error" not in said
