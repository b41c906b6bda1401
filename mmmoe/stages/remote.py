"""Commands on other nodes by ssh: one line for the remote shell, in which every word is quoted.

Variables come by the standard input, for everybody on both nodes can read a command line.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

CONNECT_S = 10
OPTIONS = [
    *("-o", "BatchMode=yes"),  # a password nobody can type is a failure, not a wait
    *("-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", "ServerAliveInterval=10"),  # a node that is cut off ends the command within 30 s
    *("-o", "ServerAliveCountMax=3"),
]


READ_VARIABLES = 'while IFS= read -r line && [ -n "$line" ]; do export "$line"; done'


def remote_command(host: str, words: Sequence[str], folder: Path) -> list[str]:
    """Returns the command that runs `words` on a node, in a folder that stands there too.

    It first reads variables, `as_input`, from its standard input; the rest of that is for `words`.
    """
    script = f"{READ_VARIABLES}; cd {shlex.quote(str(folder))} && exec {shlex.join(words)}"
    return ["ssh", *OPTIONS, host, f"exec sh -c {shlex.quote(script)}"]


def as_input(variables: Mapping[str, str]) -> str:
    """Returns what a remote command reads first: a line for each variable, then an empty one."""
    return "".join(f"{name}={value}\n" for name, value in variables.items()) + "\n"


def answers(host: str) -> bool:
    """Says whether a node can be reached."""
    try:
        return _ask(host, "true").returncode == 0
    except subprocess.TimeoutExpired:
        return False


def address_of(host: str) -> str:
    """Returns an address of a node that the others reach, found by its name, else by asking it.

    Raises:
        ValueError: The node does not answer.
    """
    address = named_address(host)
    if address is not None:
        return address
    try:
        done = _ask(host, "hostname -I")
    except subprocess.TimeoutExpired:
        raise ValueError(f"{host} does not answer to ssh within {2 * CONNECT_S} s; see `mmmoe doctor`") from None
    words = done.stdout.split()
    if done.returncode or not words:
        raise ValueError(f"{host} does not tell its address: {done.stderr.strip()}; see `mmmoe doctor --hostfile`")
    return words[0]


def named_address(host: str) -> str | None:
    """Returns the address that a node's name stands for, None if it is unknown or leads nowhere but to itself."""
    try:
        address = str(socket.getaddrinfo(host.rpartition("@")[2], None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None
    return None if address.startswith("127.") or address == "::1" else address


def _ask(host: str, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", *OPTIONS, host, line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * CONNECT_S,
        check=False,
    )
