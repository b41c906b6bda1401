"""Who am I among the processes: the only place that reads the launcher's environment variables."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import psutil
import torch
import torch.distributed as torch_dist

T = TypeVar("T")

LET_GO_S = 0.1

COLLECTIVE_S = 4 * 3600
"""Longest wait in a collective: longer than anything that one process does alone (an exam, an encoding) while others
wait. A process that is dead or frozen is found much sooner, by its missing heartbeats."""

JOIN_S = 300
"""Longest wait for all processes to come together: some nodes read Python's packages from a slow disk."""

LOST = ("by peer", "Timed out waiting", "Broken pipe", "Application timeout", "No route to host")
"""What gloo says when another process is gone, or does not come to a collective."""


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


def device() -> torch.device:
    """Returns the accelerator of this process, or the CPU when there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def start(deadline_s: float = COLLECTIVE_S, join_s: float = JOIN_S) -> None:
    """Joins the process group: nccl on GPUs, gloo on CPUs. One process joins nothing.

    Args:
        deadline_s: Longest wait in a collective, and
        join_s: for the others to come.

    Raises:
        DistStoreError: They did not.
        ValueError: The port they meet on is taken.
    """
    if world_size() == 1 or torch_dist.is_initialized():
        return
    _name_interface(master_address())
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    join_s = min(join_s, deadline_s)
    try:
        torch_dist.init_process_group(backend, timeout=timedelta(seconds=join_s))
    except torch_dist.DistError as error:
        where = f"{master_address()}, port {os.environ.get('MASTER_PORT')}"
        if "EADDRINUSE" in str(error):
            raise ValueError(
                f"the processes were to meet at {where}, which another program has taken; give another: engine.port=N, "
                "or the launcher's own option (torchrun: --master-port, deepspeed: --master_port)"
            ) from None
        raise torch_dist.DistStoreError(
            f"{world_size()} processes were to meet at {where}, but not all came within {join_s:.0f} s"
        ) from error
    allow(deadline_s)


def allow(deadline_s: float) -> None:
    """Sets the longest wait of the process group from now on, in a collective and for what opens another group."""
    if torch_dist.is_initialized():
        limit = timedelta(seconds=deadline_s)
        # Older torch has it under another name, which newer torch warns of.
        set_timeout = getattr(torch_dist, "set_timeout", None) or torch_dist.distributed_c10d._set_pg_timeout
        set_timeout(limit)
        torch_dist.distributed_c10d._get_default_store().set_timeout(limit)


def _name_interface(master: str) -> None:
    """Tells gloo the network interface that leads to the first process's node.

    It would take the one of its own host name, which many systems give a loopback address that no other node reaches.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or master in ("127.0.0.1", "localhost", "::1"):
        return
    try:
        family = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((master, 9))  # sends nothing: only asks the routing table
            own = probe.getsockname()[0]
    except OSError:
        return  # joining says it better
    names = [name for name, there in psutil.net_if_addrs().items() if own in [entry.address for entry in there]]
    if names and not own.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]


def lost_peer(error: RuntimeError) -> bool:
    """Says whether a collective failed because another process is gone or did not come."""
    return isinstance(error, torch_dist.DistError) or any(words in str(error) for words in LOST)


def stop() -> None:
    """Leaves the process group."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
        # gloo's threads drop the last collectives' tensors after we have the result, and need the interpreter for it.
        # One that has not had it yet when the interpreter ends aborts the process (pytorch issue 190489). A group
        # somebody still holds (DeepSpeed keeps its own for good) does not join its threads: let them have it here.
        time.sleep(LET_GO_S)


def barrier() -> None:
    """Waits for every process."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def sum_over_ranks(values: list[float]) -> list[float]:
    """Returns each value summed over all processes, in float64."""
    if not torch_dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device())
    torch_dist.all_reduce(total)
    return [float(x) for x in total.tolist()]


def gather_objects(value: object) -> list[object]:
    """Returns every process's value, in rank order, on every process."""
    if not torch_dist.is_initialized():
        return [value]
    gathered: list[object] = [None] * world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def as_on_first(value: T) -> T:
    """Returns the first process's value on every process; the others' are not looked at."""
    return cast(T, gather_objects(value)[0])


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
