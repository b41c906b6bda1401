"""Who am I among the processes, and what children are told of it: the only place that reads the launcher's variables.

No torch here: a command that only starts others would spend most of its time on loading it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from pathlib import Path


def rank() -> int:
    """Returns this process's global rank (0 when there is one process)."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns this process's rank within its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Returns the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Says whether a launcher (deepspeed, torchrun, srun, ours) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def host() -> str:
    """Returns the name of this process's node."""
    return socket.gethostname()


def who() -> str:
    """Returns this process's rank and node in words."""
    return f"process {rank()} on {host()}"


def master_address() -> str:
    """Returns the address of the first process's node."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


def master_port() -> str | None:
    """Returns the port that the processes meet on, None if no launcher said one."""
    return os.environ.get("MASTER_PORT")


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Says in torch's variables what srun said in its own, for a process that srun started without a launcher.

    A batch script and an interactive shell have SLURM_PROCID, too, but are not one of several tasks.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or "SLURM_PROCID" not in environment or int(tasks) == 1:
        return
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment["WORLD_SIZE"] = tasks
    environment.setdefault("MASTER_ADDR", _first_node(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    environment.setdefault("MASTER_PORT", str(20000 + (16 * job + step) % 20000))


def _first_node(nodes: str) -> str:
    """Returns the first node of Slurm's short form: `gpu[03-05,9],cpu1` begins with gpu03."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part for part in found.groups() if part) if found else nodes


def free_port() -> int:
    """Returns a TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    """Says whether a TCP port of the loopback address can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


HANDED_ON = ("PYTHON", "NCCL_", "GLOO_", "UCX_")
"""Beginnings of the names of variables that every node needs as this one has them."""


VARIABLE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*?)\s*")
"""A line of `.deepspeed_env`; what begins with # is none, and no value has a line break."""


def handed_on(threads: int) -> dict[str, str]:
    """Returns the variables that a launcher gives to the processes of other nodes: no more, for there may be secrets.

    What else they need can stand in `.deepspeed_env`, in the home or the working folder, as DeepSpeed has it.
    """
    lines = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(HANDED_ON)]
    for folder in (Path.home(), Path.cwd()):
        file = folder / ".deepspeed_env"
        lines += file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {
        **{found[1]: found[2] for found in map(VARIABLE.fullmatch, lines) if found},
        **_own(threads),
    }


def _own(threads: int) -> dict[str, str]:
    """Returns the variables that every process of ours gets."""
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def with_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment with other variables on top."""
    return {**os.environ, **variables}


def place_variables(rank: int, local_rank: int, world_size: int, address: str, port: int) -> dict[str, str]:
    """Returns the variables that tell a process its place, as every launcher sets them."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def child_environment(
    rank: int, world_size: int, port: int, threads: int, address: str = "127.0.0.1", local_rank: int | None = None
) -> dict[str, str]:
    """Returns the environment of one process of a run that a launcher of ours starts on its own node.

    Args:
        rank: Its place among all processes.
        world_size: Their number.
        port: Where they meet,
        threads: CPU threads of the process.
        address: and on which node.
        local_rank: Its place among the processes of its node; by default there is one node.
    """
    return {
        **os.environ,
        **place_variables(rank, rank if local_rank is None else local_rank, world_size, address, port),
        **_own(threads),
    }
