"""Machines of a cluster on this machine: each has its own network, host name, processes and sshd; the disk is shared.

They are Linux namespaces, joined by a switch that is one too, so nothing of them is seen outside, and all of it is gone
when the process that holds it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NEEDED = ("unshare", "nsenter", "ip", "ssh", "ssh-keygen", "pdsh")
SSHD = Path("/usr/sbin/sshd")
NAMESPACES = ["--net", "--uts", "--mount", "--pid"]


def missing() -> str:
    """Returns what this machine lacks to play a cluster, in words; empty if nothing."""
    if os.geteuid() != 0:
        return "namespaces with a network of their own need root"
    lacking = [name for name in (*NEEDED, str(SSHD)) if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (Debian: openssh-server, pdsh, iproute2)"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"this machine allows no namespaces: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Node:
    """One machine."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    switch: int
    """Pid of a process in the switch."""

    @property
    def pid(self) -> int:
        """The pid, outside, of its first process."""
        return psutil.Process(self.holder.pid).children()[0].pid

    def command(self, command: Sequence[object], folder: Path = Path("/")) -> list[str]:
        """Returns a command as it is run on this node, in a folder."""
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wd={folder}", "--", *map(str, command)]

    def start(
        self, command: Sequence[object], output: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command on this node; what it says goes to a file, in whose folder it runs."""
        with output.open("ab") as file:
            env = {**os.environ, **(environment or {})}
            return subprocess.Popen(self.command(command, output.parent), stdout=file, stderr=file, env=env)

    def cut(self) -> None:
        """Pulls the cable: nothing comes or goes, and nobody is told."""
        self._cable("down")

    def mend(self) -> None:
        """Plugs it in again."""
        self._cable("up")

    def _cable(self, state: str) -> None:
        _inside(self.switch, "--net")("ip", "link", "set", self.name, state)

    def processes(self, word: str) -> list[psutil.Process]:
        """Returns its processes whose command line has a word."""
        own, found = Path(f"/proc/{self.pid}/ns/pid").readlink(), []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == own and word in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def cluster(folder: Path, count: int = 2) -> Iterator[list[Node]]:
    """Inside, there are machines node1, node2, ... that reach one another by ssh without a password."""
    folder.mkdir(parents=True)
    addresses = {f"node{number}": f"10.77.0.{number}" for number in range(1, count + 1)}
    hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in addresses))
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "ssh_config").write_text(
        f"Host *\n IdentityFile {folder / 'user_key'}\n IdentitiesOnly yes\n StrictHostKeyChecking no\n"
        " UserKnownHostsFile /dev/null\n LogLevel ERROR\n BatchMode yes\n ConnectTimeout 10\n"
    )
    (folder / "sshd_config").write_text(
        f"Port 22\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder / 'user_key.pub'}\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nUsePAM no\nPidFile none\nUseDNS no\n"
    )
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_held(["--net"], ["sleep", "infinity"]))
        run = _inside(switch.pid, "--net")
        run("ip", "link", "add", "switch", "type", "bridge")
        run("ip", "link", "set", "switch", "up")
        yield [stack.enter_context(_node(folder, name, where, switch.pid)) for name, where in addresses.items()]


@contextlib.contextmanager
def _node(folder: Path, name: str, address: str, switch: int) -> Iterator[Node]:
    waits = ["sh", "-c", f"read go; exec {SSHD} -D -f {folder / 'sshd_config'} -E {folder / name}.log"]
    with _held([*NAMESPACES, "--fork", "--mount-proc", "--kill-child"], waits) as holder:
        _until(lambda: psutil.Process(holder.pid).children(), "the node's first process")
        node = Node(name, address, holder, switch)
        run = _inside(switch, "--net")
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        run("ip", "link", "set", name, "master", "switch", "up")
        for step in (
            f"hostname {name}",
            f"mount --bind {folder / 'hosts'} /etc/hosts",
            f"mount --bind {folder / 'ssh_config'} /etc/ssh/ssh_config",
            "mount -t tmpfs tmpfs /run",
            "mkdir /run/sshd",
            "ip link set lo up",
            f"ip address add {address}/24 dev eth0",
            "ip link set eth0 up",
        ):
            subprocess.run(node.command(step.split()), check=True)
        assert holder.stdin is not None
        holder.stdin.write(b"go\n")
        holder.stdin.flush()
        reached = node.command(["ssh", name, "true"])
        _until(lambda: subprocess.run(reached, capture_output=True).returncode == 0, f"sshd of {name}")
        yield node


@contextlib.contextmanager
def _held(namespaces: list[str], command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Holds new namespaces by a process, which dies with this one."""
    apart = ["unshare", *namespaces, "--", *command]
    process = subprocess.Popen(apart, stdin=subprocess.PIPE, preexec_fn=_die_with_parent)
    try:
        # Before the namespaces are there, whoever entered them would enter those of this process.
        own = Path("/proc/self/ns/net").readlink()
        _until(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != own, "a namespace")
        yield process
    finally:
        process.kill()
        process.communicate()


def _inside(pid: int, *namespaces: str):
    def run(*command: str) -> None:
        subprocess.run(["nsenter", "--target", str(pid), *namespaces, "--", *command], check=True)

    return run


def _until(holds, what: str, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up within {within_s:.0f} s")
        time.sleep(0.05)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
