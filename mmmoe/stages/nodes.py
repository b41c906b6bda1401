"""A run over the nodes of a hostfile, by DeepSpeed's launcher with pdsh or by ssh, and again without lost nodes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmmoe import env
from mmmoe.log import console
from mmmoe.stages.children import Child, wait_for
from mmmoe.stages.hostfile import Host, Launcher, processes, read_hostfile, write_hostfile
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.preflight import problems_of_world
from mmmoe.stages.remote import OPTIONS, address_of, answers, as_input, named_address, remote_command
from mmmoe.stages.restart import with_restarts
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import LOST_PEER, STOPPED
from mmmoe.stages.variables import shown, write_private

PORT = 29500
"""Where processes meet if `engine.port` does not say: DeepSpeed's own. Each restart takes the next one."""
PLAIN = r"[\w@+=:,./-]*"
"""Words that pdsh and DeepSpeed hand through a remote shell unharmed: they do not quote."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run."""

    hosts: list[Host]
    launcher: Launcher | None = None
    """By default pdsh where it is installed and can hand every word on, else ssh."""
    file: Path = Path("FILE")
    """The hostfile they come from, for messages."""

    @property
    def option(self) -> str:
        """Returns what asks for it."""
        launcher = "" if self.launcher is None else f" --launcher {self.launcher}"
        return f"--hostfile {shlex.quote(str(self.file))}{launcher}"

    @classmethod
    def of(cls, path: Path, launcher: Launcher | None) -> Nodes:
        """Reads a hostfile.

        Raises:
            ValueError: when it is not in order, or pdsh is asked for and not installed.
        """
        if launcher == Launcher.pdsh and not shutil.which("pdsh"):
            raise ValueError("pdsh is not installed here; install it, or use --launcher ssh")
        return cls(read_hostfile(path), launcher, path)

    def world(self, spec: RunSpec) -> int:
        """Returns the number of processes."""
        return processes(self.hosts)

    def check(self, spec: RunSpec, path: Path, overrides: list[str], *, is_new: bool) -> None:
        """Refuses words that pdsh cannot hand to other nodes, if it is asked for.

        Raises:
            ValueError: It cannot.
        """
        self._chosen(_Attempt(spec, path, overrides, self.hosts, "", 0))

    def reach(self) -> None:
        """Looks whether every node answers, all at once.

        Raises:
            ValueError: naming those that do not.
        """
        there = _answering(self.hosts)
        lost = [host.name for host in self.hosts if host not in there]
        if lost:
            raise ValueError(
                f"no answer by ssh from {', '.join(lost)}: `mmmoe doctor --hostfile {self.file}` tells why"
            )
        address_of(self.hosts[0].name)  # asked again at each start: without this node another one is the first

    def show(self, spec: RunSpec, folder: Path, overrides: list[str]) -> Iterator[str]:
        """Yields what would be run, for a shell."""
        first = self.hosts[0].name
        attempt = _Attempt(spec, folder, overrides, self.hosts, named_address(first) or first, _port(spec, 0))
        if self._chosen(attempt) == Launcher.pdsh:
            yield f"# {attempt.hostfile}: {', '.join(f'{host.name} slots={host.slots}' for host in self.hosts)}"
            yield f"# {attempt.variables_file}: {shlex.join(shown(attempt.variables()))}"
            yield shlex.join(["env", *(f"{k}={v}" for k, v in attempt.pdsh_environment().items()), *attempt.by_pdsh()])
        else:
            variables = shlex.join(shown(attempt.variables()))
            yield f"# to the standard input of each, a line each and then an empty one: {variables}"
            yield from (shlex.join(command) for command in attempt.by_ssh())

    def start(self, spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
        """Carries the run out; returns the exit status."""
        remaining, attempts = list(self.hosts), 0

        def once() -> int:
            nonlocal attempts
            address, port = address_of(remaining[0].name), _port(spec, attempts)
            attempt = _Attempt(spec, folder.path.absolute(), overrides, list(remaining), address, port)
            attempts += 1
            write_hostfile(attempt.hostfile, remaining)
            status = attempt.run(self._chosen(attempt))
            # DeepSpeed's launcher says 0 of a pdsh that was killed, and 1 when it is asked to stop: the ledger knows
            # better.
            last = folder.events()[-1]["event"]
            if status == 0:
                return status if last == "finished" else LOST_PEER
            return STOPPED if last == "stopped" else status

        def may_go_on() -> bool:
            remaining[:] = _answering(self.hosts)
            return _is_enough(spec, self.hosts, remaining)

        return with_restarts(spec.engine.restarts, folder, once, may_go_on)

    def _chosen(self, attempt: _Attempt) -> Launcher:
        odd = attempt.odd_words()
        if self.launcher == Launcher.pdsh and odd:
            raise ValueError(f"pdsh cannot hand {odd[0]!r} to a remote shell; rename it, or use --launcher ssh")
        has_pdsh = shutil.which("pdsh") is not None and not odd
        return self.launcher or (Launcher.pdsh if has_pdsh else Launcher.ssh)


@dataclass(frozen=True)
class _Attempt:
    """One start of a run's processes on nodes that answer."""

    spec: RunSpec
    folder: Path
    overrides: list[str]
    hosts: list[Host]
    address: str
    port: int

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile"

    @property
    def variables_file(self) -> Path:
        return self.folder / "launch.env"

    def variables(self) -> dict[str, str]:
        most = max(host.slots for host in self.hosts)
        return env.handed_on(self.spec.engine.threads or max(1, (os.cpu_count() or 1) // most))

    def plain_variables(self) -> list[str]:
        return [f"{name}={value}" for name, value in self.variables().items()]

    def by_pdsh(self) -> list[str]:
        """Returns DeepSpeed's launcher; each of its processes goes on with the run."""
        return [
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            *("--hostfile", str(self.hostfile), "--launcher", "pdsh"),
            # Without force_multi a hostfile of one host would be run on this machine, whatever its name.
            *("--force_multi", "--master_addr", self.address, "--master_port", str(self.port)),
            *("--module", "mmmoe.cli", "resume", str(self.folder), *self.overrides),
        ]

    def pdsh_environment(self) -> dict[str, str]:
        """Returns what tells DeepSpeed the variables to export, and pdsh when to give a node up."""
        return {"DS_ENV_FILE": str(self.variables_file), "PDSH_SSH_ARGS_APPEND": " ".join(OPTIONS)}

    def by_ssh(self) -> list[list[str]]:
        """Returns a command for each node, which starts the node's processes and stops them when it is cut off."""
        commands, first, world = [], 0, processes(self.hosts)
        for host in self.hosts:
            place = [str(number) for number in (first, host.slots, world)]
            words = [sys.executable, "-m", "mmmoe.cli", "node", str(self.folder), *place, self.address, str(self.port)]
            commands.append(remote_command(host.name, [*words, *self.overrides], Path.cwd()))
            first += host.slots
        return commands

    def odd_words(self) -> list[str]:
        """Returns what a remote shell would not take as it is."""
        words = [str(Path.cwd()), sys.executable, str(self.folder), *self.overrides, *self.plain_variables()]
        return [word for word in words if not re.fullmatch(PLAIN, word, re.ASCII)]

    def run(self, launcher: Launcher) -> int:
        """Starts, waits; returns the exit status that says best how it ended."""
        patience = self.spec.engine.deadline_s + 60  # survivors end by themselves, and name who was lost
        if launcher == Launcher.ssh:
            pairs = zip(self.hosts, self.by_ssh(), strict=True)
            given = as_input(self.variables()).encode()
            return wait_for([_node(host.name, command, given) for host, command in pairs], patience)
        write_private(self.variables_file, "".join(f"{line}\n" for line in self.plain_variables()))
        runner = subprocess.Popen(self.by_pdsh(), env=env.with_variables(self.pdsh_environment()))
        return wait_for([Child("deepspeed", runner, runner.terminate)], patience)


def _node(name: str, command: list[str], given: bytes) -> Child:
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # a node out of reach; its status says so
        process.stdin.write(given)
        process.stdin.flush()
    return Child(f"node {name}", process, process.stdin.close)  # the node stops when its standard input ends


def _answering(hosts: Sequence[Host]) -> list[Host]:
    """Returns the nodes that can be reached, all asked at once."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = list(pool.map(lambda host: answers(host.name), hosts))
    return [host for host, is_there in zip(hosts, found, strict=True) if is_there]


def _port(spec: RunSpec, attempts: int) -> int:
    return (spec.engine.port or PORT) + attempts


def _is_enough(spec: RunSpec, all_hosts: Sequence[Host], remaining: Sequence[Host]) -> bool:
    """Tells which nodes are left out, and says whether the rest can go on."""
    lost = [host.name for host in all_hosts if host not in remaining]
    if lost:
        console.print(f"left out, since they do not answer: {', '.join(lost)}", soft_wrap=True, highlight=False)
    if not remaining:
        console.print("no node answers: nothing can go on; see `mmmoe doctor --hostfile`")
        return False
    world = processes(remaining)
    problems = list(problems_of_world(spec, world))
    for problem in problems:
        console.print(f"{world} processes cannot go on: {problem}", soft_wrap=True, highlight=False)
    return not problems
