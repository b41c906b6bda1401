"""The verbs for several nodes: launch, and what it and the doctor start on each of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmmoe.stages.hostfile import Launcher

Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value ...")]
Folder = Annotated[Path, typer.Argument(help="a run folder")]


def launch(
    target: Annotated[Path, typer.Argument(help="a file in configs/, or a run folder, which goes on")],
    overrides: Overrides = None,
    hostfile: Annotated[Path | None, typer.Option(help="nodes, a line `host slots=N` each")] = None,
    launcher: Annotated[Launcher | None, typer.Option(help="to --hostfile; pdsh where it is installed")] = None,
    slurm: Annotated[list[str] | None, typer.Option(help="an option of sbatch: nodes=4; again for each")] = None,
    torchrun: Annotated[list[str] | None, typer.Option(help="of torchrun: nproc-per-node=8; again for each")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="print what would be run; touch nothing")] = False,
) -> None:
    """Run on several nodes: those of a hostfile, a Slurm job's, or torchrun's."""
    from mmmoe.stages.sending import send, way_of

    way = way_of(hostfile, launcher, slurm or [], torchrun or [])
    raise typer.Exit(send(target, overrides or [], way, only_print=only_print))


def node(
    folder: Folder, first: int, size: int, world: int, address: str, port: int, overrides: Overrides = None
) -> None:
    """The processes of a run on this node, until standard input ends; started by launch over ssh."""
    from mmmoe.stages.launch import Team, stop_with_input
    from mmmoe.stages.launch import launch as launch_here
    from mmmoe.stages.ledger import RunFolder

    stop_with_input()
    engine = RunFolder.open(folder).spec(overrides).engine
    arguments = ["resume", str(folder), *(overrides or [])]
    raise typer.Exit(launch_here(engine, arguments, folder / "logs", Team(first, size, world, address, port)))


def probe(token: Annotated[Path, typer.Argument(help="a file the doctor made")]) -> None:
    """What a node has, as JSON; asked by doctor."""
    from mmmoe.stages.probe import look

    sys.stdout.write(look(token).as_json() + "\n")


def meet(deadline: float) -> None:
    """One process of the doctor's collective; started by doctor."""
    from mmmoe.stages.probe import meet as meet_others

    sys.stdout.write(meet_others(deadline) + "\n")
