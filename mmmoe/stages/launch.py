"""Starts the processes of a run on this machine and watches over them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from mmmoe import dist
from mmmoe.engine.spec import EngineSpec
from mmmoe.log import logger

GRACE_S = 20.0
"""How long the other processes may take to stop after one has."""


def launch(engine: EngineSpec, arguments: list[str], logs: Path) -> int:
    """Runs `python -m mmmoe.cli ARGUMENTS` on `engine.processes` processes; returns the first bad exit status.

    The first process has the terminal; the others write to `logs/rank<N>.log`. SIGTERM and SIGINT are handed on,
    and no process outlives this one.

    Raises:
        ValueError: when `engine.port` is taken.
    """
    world = engine.processes
    if engine.port is not None and not dist.is_port_free(engine.port):
        raise ValueError(f"engine.port={engine.port} is taken by another program; leave it out to get a free one")
    port = engine.port or dist.free_port()
    threads = engine.threads or max(1, (os.cpu_count() or 1) // world)
    logs.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(world):
        output = None if rank == 0 else (logs / f"rank{rank}.log").open("ab")
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "mmmoe.cli", *arguments],
                env=dist.child_environment(rank, world, port, threads),
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # one prctl call, no locks, before any thread starts
            )
        )
        if output is not None:
            output.close()
    return _watch(children, logs)


def _watch(children: list[subprocess.Popen[bytes]], logs: Path) -> int:
    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(children, logs)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]], logs: Path) -> int:
    failed_at: float | None = None
    status = 0
    while any(child.poll() is None for child in children):
        for rank, child in enumerate(children):
            if failed_at is None and child.poll() not in (None, 0):
                failed_at, status = time.monotonic(), child.returncode
                logger().error("process %d stopped with status %d%s", rank, status, _last_words(rank, logs))
        if failed_at is not None:
            _stop_others(children, time.monotonic() - failed_at)
        time.sleep(0.1)
    statuses = [child.returncode for child in children if child.returncode]
    # When one fails, the others lose their peer: the status that says why comes first.
    status = next((known for known in statuses if known > 1), status or (statuses[0] if statuses else 0))
    return 128 - status if status < 0 else status


def _last_words(rank: int, logs: Path) -> str:
    """Returns the end of a process's log, which nobody sees; the first process has spoken for itself."""
    if rank == 0:
        return ""
    log = logs / f"rank{rank}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:] if log.is_file() else []
    return "".join(f"\n  {line}" for line in [f"({log})", *lines])


def _stop_others(children: list[subprocess.Popen[bytes]], seconds_since: float) -> None:
    """Lets the others notice by themselves, then asks, then insists."""
    for child in children:
        if child.poll() is None and seconds_since > GRACE_S:
            child.kill()
        elif child.poll() is None and seconds_since > GRACE_S / 4:
            child.terminate()


def _die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves nothing behind.

    Ctrl-C reaches the whole terminal; the parent turns it into a request to save and stop, so children ignore it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
