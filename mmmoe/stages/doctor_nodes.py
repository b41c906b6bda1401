"""Looks at every node of a hostfile from this one, by ssh, and lets them meet: names the node and the cure."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmmoe import env
from mmmoe.stages.doctor import ROOM_GB, Finding
from mmmoe.stages.hostfile import Host
from mmmoe.stages.nodes import PORT
from mmmoe.stages.probe import NodeReport, look
from mmmoe.stages.remote import OPTIONS, address_of, as_input, remote_command

COLLECTIVE_S = 60.0
PROBE_S = 120.0
"""Longest wait for a node's report: Python reads its packages from a disk that may be far and cold."""
CLOCK_S = 5.0
"""Difference of clocks worth a word. Nothing depends on it but the times in logs."""

Run = Callable[[Sequence[str], float, str], "Said"]


@dataclass(frozen=True)
class Said:
    """What a command said, and when by this node's clock."""

    status: int | None
    """None: it did not end in time."""
    out: str
    error: str
    began: float
    ended: float

    @property
    def words(self) -> str:
        """The last line of what went wrong."""
        lines = self.error.strip().splitlines()
        return lines[-1] if lines else f"status {self.status}"


def run_command(command: Sequence[str], seconds: float, given: str) -> Said:
    """Runs a command with something on its standard input, to its end or as long as it may take."""
    began = time.time()
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Said(None, "", f"no answer within {seconds:.0f} s", began, time.time())
    return Said(done.returncode, done.stdout, done.stderr, began, time.time())


def node_findings(hosts: Sequence[Host], run: Run = run_command) -> Iterator[Finding]:
    """Yields what was looked at, node by node, then what they do together.

    Args:
        hosts: The nodes.
        run: Runs a command; replaced in tests.
    """
    token = Path.cwd() / f".doctor-{secrets.token_hex(8)}"
    secret = secrets.token_hex(8)
    token.write_text(secret, encoding="utf-8")
    try:
        here = look(token)
        with ThreadPoolExecutor(len(hosts)) as pool:
            looks = list(pool.map(lambda host: _node(host, here, token, run), hosts))
    finally:
        token.unlink()
    sound = []
    for host, (findings, is_sound) in zip(hosts, looks, strict=True):
        yield from findings
        sound += [host] if is_sound else []
    yield from _meeting(sound, run)


def _node(host: Host, here: NodeReport, token: Path, run: Run) -> tuple[list[Finding], bool]:
    """Returns what a node has, and whether it can meet the others."""
    hello = run(["ssh", *OPTIONS, host.name, "date +%s.%N"], 30, "")
    if hello.status != 0:
        cure = (
            f"try `ssh {host.name} true`: it must work without a password or a question. Is the node up, its name "
            "right, its key known?"
        )
        return [Finding(host.name, f"cannot be reached: {hello.words}", False, cure)], False
    command = [sys.executable, "-m", "mmmoe.cli", "probe", str(token)]
    said = run(remote_command(host.name, command, Path.cwd()), PROBE_S, as_input(env.handed_on(1)))
    try:
        if said.status != 0:
            raise ValueError(said.words)
        report = NodeReport.from_json(said.out)
    except ValueError as error:
        cure = f"this folder and {sys.executable} must be there as they are here: share the disk, or install alike"
        return [Finding(host.name, f"mmmoe does not run: {error}", False, cure)], False
    return list(_compared(host, report, here, hello)), True


def _compared(host: Host, there: NodeReport, here: NodeReport, hello: Said) -> Iterator[Finding]:
    name = host.name
    yield Finding(name, f"reached as {there.host} in {hello.ended - hello.began:.1f} s")
    differences = [f"python {there.python} (here {here.python})"] if there.python != here.python else []
    differences += [
        f"{package} {there.packages.get(package)} (here {version})"
        for package, version in here.packages.items()
        if there.packages.get(package) != version
    ]
    cure = "make it as here: the same environment on a shared disk, or pip install -c constraints.txt on every node"
    yield Finding(f"{name}: versions", ", ".join(differences) or "as here", not differences, cure)
    is_same = there.source == here.source
    yield Finding(f"{name}: mmmoe", "as here" if is_same else "another state of the source", is_same, "update it there")
    yield Finding(f"{name}: memory", f"{there.memory_gb:.1f} GiB free, {there.processors} processors")
    yield Finding(f"{name}: disk", f"{there.disk_gb:.1f} GiB free", there.disk_gb > ROOM_GB, "make room")
    is_shared = there.token == here.token
    yield Finding(
        f"{name}: this folder",
        "shared" if is_shared else "not shared: a file written here is not seen there",
        is_shared,
        "work in a folder on a disk that all nodes mount at the same place: runs and checkpoints must be seen by all",
    )
    enough = there.gpus == 0 or there.gpus >= host.slots
    cure = f"write slots={there.gpus} in the hostfile, one process a GPU"
    yield Finding(f"{name}: GPUs", f"{there.gpus} for {host.slots} slots", enough, cure)
    yield _clock(name, hello)


def _clock(name: str, hello: Said) -> Finding:
    """Compares clocks: the node looked at its own somewhere within the round trip."""
    try:
        there = float(hello.out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return Finding(f"{name}: clock", "not told")
    unsure = (hello.ended - hello.began) / 2
    off = there - (hello.began + hello.ended) / 2
    is_off = abs(off) - unsure > CLOCK_S
    text = f"{abs(off):.1f} s {'ahead' if off > 0 else 'behind'} (to {unsure:.1f} s)" if is_off else "as here"
    return Finding(f"{name}: clock", text, True, "only times in logs differ; set it by NTP", is_warning=is_off)


def _meeting(hosts: Sequence[Host], run: Run) -> Iterator[Finding]:
    """Lets one process of every node that works add up a number with the others."""
    if len(hosts) < 2:
        return
    try:
        address = address_of(hosts[0].name)
    except ValueError as error:
        yield Finding("collective", str(error), False, "the first node of a hostfile must have an address")
        return
    port = PORT + 1 + secrets.randbelow(1000)  # not the one of a run that may be going on

    def meet(place: int) -> Said:
        variables = env.handed_on(1) | env.place_variables(place, 0, len(hosts), address, port)
        command = [sys.executable, "-m", "mmmoe.cli", "meet", str(COLLECTIVE_S)]
        return run(remote_command(hosts[place].name, command, Path.cwd()), 2 * COLLECTIVE_S, as_input(variables))

    with ThreadPoolExecutor(len(hosts)) as pool:
        said = list(pool.map(meet, range(len(hosts))))
    yield from _told({host.name: words for host, words in zip(hosts, said, strict=True)}, f"{address}, port {port}")


def _told(said: Mapping[str, Said], where: str) -> Iterator[Finding]:
    for name, words in said.items():
        cure = (
            f"let the nodes connect to one another on all ports (they met at {where}); if a node has several networks, "
            "name the one they share: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        )
        is_well = words.status == 0
        text = words.out.strip().splitlines()[-1] if is_well else words.words
        yield Finding(f"{name}: collective", text, is_well, cure)
