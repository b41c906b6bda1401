"""DeepSpeed's list of nodes: a line `host slots=N` each, N processes on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mmmoe import paths

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*"
"""What a host may be called: nothing that ssh would take for an option, or a shell for a command."""
SLOTS = r"[1-9][0-9]{0,5}"


class Launcher(StrEnum):
    """What starts the processes of other nodes."""

    pdsh = "pdsh"
    ssh = "ssh"


@dataclass(frozen=True)
class Host:
    """A node, and how many processes it has room for: one a GPU."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Returns the nodes of a hostfile, in order.

    Raises:
        ValueError: listing every line that is wrong.
    """
    if not path.is_file():
        near = None if path.exists() else paths.near(path)
        fault = "is a folder" if path.is_dir() else "no such hostfile"
        cure = f"did you mean {near}?" if near else "write a line `host slots=N` for each node, see configs/hostfile"
        raise ValueError(f"{path}: {fault}; {cure}")
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        found = re.fullmatch(rf"({NAME})\s+slots=({SLOTS})", text)
        if found is None and text:
            problems.append(f"{path}:{number}: {text!r} is not `host slots=N`, N from 1")
        elif found is not None and found[1] in [host.name for host in hosts]:
            problems.append(f"{path}:{number}: {found[1]} is there already; give it all its slots in one line")
        elif found is not None:
            hosts.append(Host(found[1], int(found[2])))
    if not hosts and not problems:
        problems.append(f"{path}: names no host; write a line `host slots=N` for each node")
    if problems:
        raise ValueError("\n".join(problems))
    return hosts


def write_hostfile(path: Path, hosts: Sequence[Host]) -> None:
    """Writes a hostfile."""
    path.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts), encoding="utf-8")


def processes(hosts: Sequence[Host]) -> int:
    """Returns the number of processes on all nodes."""
    return sum(host.slots for host in hosts)
