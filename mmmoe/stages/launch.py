"""Starts the processes of a run on this machine and watches over them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from mmmoe import env
from mmmoe.engine.spec import EngineSpec
from mmmoe.stages.children import Child, wait_for

GRACE_S = 20.0
"""How long the other processes may take to stop after one has."""


@dataclass(frozen=True)
class Team:
    """The processes of a run that one node starts."""

    first: int
    """Rank of the first of them."""
    size: int
    world: int
    """Processes on all nodes."""
    address: str
    """Where the run's first process is,"""
    port: int
    """and the port that all processes meet on."""


def launch(engine: EngineSpec, arguments: list[str], logs: Path, team: Team | None = None) -> int:
    """Runs `python -m mmmoe.cli ARGUMENTS` on a team's processes; returns the status that says best how it ended.

    The run's first process has the terminal; the others write to `logs/rank<N>.log`. SIGTERM and SIGINT are handed on,
    and no process outlives this one.

    Args:
        engine: Says how many threads, and on which port.
        arguments: of each process.
        logs: Folder of the logs.
        team: By default all processes of the run, `engine.processes`, are on this node.

    Raises:
        ValueError: when `engine.port` is taken.
    """
    if team is None:
        if engine.port is not None and not env.is_port_free(engine.port):
            raise ValueError(f"engine.port={engine.port} is taken by another program; leave it out to get a free one")
        team = Team(0, engine.processes, engine.processes, "127.0.0.1", engine.port or env.free_port())
    threads = engine.threads or max(1, (os.cpu_count() or 1) // team.size)
    logs.mkdir(parents=True, exist_ok=True)
    return wait_for([_start(arguments, team, place, threads, logs) for place in range(team.size)], GRACE_S)


def stop_with_input() -> None:
    """Asks this process to stop when its standard input ends: whoever holds the other end of it is gone."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: Python aborts at its end if a thread holds that one's lock
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="standard input", daemon=True).start()


def _start(arguments: list[str], team: Team, place: int, threads: int, logs: Path) -> Child:
    rank = team.first + place
    log = None if rank == 0 else logs / f"rank{rank}.log"
    output = log.open("ab") if log else None
    begins = output.seek(0, os.SEEK_END) if output else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "mmmoe.cli", *arguments],
        env=env.child_environment(rank, team.world, team.port, threads, team.address, place),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=_die_with_parent,  # one prctl call, no locks, before any thread starts
    )
    if output is not None:
        output.close()
    return Child(f"process {rank}", process, process.terminate, lambda: _last_words(log, begins))


def _last_words(log: Path | None, begins: int) -> str:
    """Returns the end of a process's log, which nobody sees; the first process has spoken for itself.

    Args:
        log: Its log, which attempts before have written to as well.
        begins: Where this attempt's part of it begins, in bytes.
    """
    if log is None:
        return ""
    said = log.read_bytes()[begins:] if log.is_file() else b""
    lines = said.decode(errors="replace").splitlines()[-12:]
    return "".join(f"\n  {line}" for line in [f"the end of {log}:", *lines])


def _die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that a killed run leaves nothing behind.

    Ctrl-C reaches the whole terminal; the parent turns it into a request to save and stop, so children ignore it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
