"""`mmmoe launch`: makes or takes a run folder, and sends the run to nodes, to Slurm or to torchrun."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mmmoe.config.load import load
from mmmoe.log import console
from mmmoe.stages.found import tell_end
from mmmoe.stages.hostfile import Launcher
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.nodes import Nodes
from mmmoe.stages.preflight import preflight
from mmmoe.stages.slurm import Slurm
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.torchrun import Torchrun


class Way(Protocol):
    """How the processes of a run get to where they work.

    Each of them runs `mmmoe resume FOLDER`, so that a node that starts again, or a job that is queued again, goes on
    and makes no folder of its own.
    """

    @property
    def option(self) -> str:
        """Returns what asks for it, for a command line."""

    def world(self, spec: RunSpec) -> int | None:
        """Returns the number of processes, None if that is known later."""

    def check(self, spec: RunSpec, path: Path, overrides: list[str], *, is_new: bool) -> None:
        """Refuses what cannot work so.

        Args:
            spec: The run's.
            path: Its folder's, whole.
            overrides: What it is to go on with.
            is_new: The folder is not made yet.

        Raises:
            ValueError: What is declared does not go together, or the program that is to start the run says so.
        """

    def reach(self) -> None:
        """Looks whether the run can be sent off from here.

        Raises:
            ValueError: It cannot.
        """

    def show(self, spec: RunSpec, folder: Path, overrides: list[str]) -> Iterator[str]:
        """Yields the commands as a shell takes them."""

    def start(self, spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
        """Sends the run off; returns the exit status."""


def way_of(hostfile: Path | None, launcher: Launcher | None, slurm: list[str], torchrun: list[str]) -> Way:
    """Returns the way that was asked for.

    Raises:
        ValueError: None or several were, or one is not declared as it should be.
    """
    given = {"--hostfile": hostfile is not None, "--slurm": bool(slurm), "--torchrun": bool(torchrun)}
    if sum(given.values()) > 1:
        raise ValueError(f"{' and '.join(name for name in given if given[name])} are different ways; give one of them")
    if not any(given.values()):
        raise ValueError("give one of --hostfile FILE, --slurm nodes=N ..., --torchrun nproc-per-node=N ...")
    if launcher is not None and hostfile is None:
        raise ValueError("--launcher says how the nodes of --hostfile FILE are reached; give that, too")
    if hostfile is not None:
        return Nodes.of(hostfile, launcher)
    return Slurm.of(slurm) if slurm else Torchrun.of(torchrun)


def send(target: Path, overrides: list[str], way: Way, *, only_print: bool) -> int:
    """Sends a new run (of a configuration) or one that goes on (of a run folder) off; returns the exit status.

    Args:
        target: A configuration or a run folder.
        overrides: Of its keys.
        way: Where to.
        only_print: Say what would be run, and touch nothing.

    Raises:
        ValueError: The run cannot work so, or its folder is in use.
    """
    folder = RunFolder.open(target) if target.is_dir() else None
    spec = load(target, RunSpec, overrides) if folder is None else folder.spec(overrides)
    path = (RunFolder.next_path(spec) if folder is None else folder.path).absolute()
    kept = [] if folder is None else overrides  # a new folder's declaration has them already
    way.check(spec, path, kept, is_new=folder is None)
    world = way.world(spec)
    preflight(_at(spec, world))
    if only_print:
        for line in way.show(spec, path, kept):
            sys.stdout.write(f"{line}\n")
        if folder is None:
            console.print(f"nothing was made: {path} is the folder that a launch now would make first", soft_wrap=True)
        return 0
    way.reach()
    if folder is None:
        folder = RunFolder.create(spec)
        console.print(f"run folder: {folder.path}", soft_wrap=True)
    else:
        folder.lock().close()  # in use: told before anything starts; its first process takes it for good
    name = type(way).__name__.lower()
    folder.record("launched", way=name, world=world, option=way.option, overrides=kept)
    try:
        status = way.start(spec, folder, kept)
    except ValueError as error:
        raise ValueError(f"{error}\nthe run's folder is there; go on with: {folder.again()}") from error
    if status:
        tell_end(folder, status)
    return status


def _at(spec: RunSpec, world: int | None) -> RunSpec:
    """Returns the spec as it would be with so many processes on this machine, to look for what does not fit."""
    if world is None:
        return spec
    engine = spec.engine.model_copy(update={"processes": world, "port": None})
    return spec.model_copy(update={"engine": engine})
