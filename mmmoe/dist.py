"""Collectives of a run's processes, and the device of each."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from typing import TypeVar, cast

import psutil
import torch
import torch.distributed as torch_dist

from mmmoe import env

T = TypeVar("T")

LET_GO_S = 0.1

COLLECTIVE_S = 4 * 3600
"""Longest wait in a collective: longer than anything that one process does alone (an exam, an encoding) while others
wait. A process that is dead or frozen is found much sooner, by its missing heartbeats."""

JOIN_S = 300
"""Longest wait for all processes to come together: some nodes read Python's packages from a slow disk."""

LOST = ("by peer", "Timed out waiting", "Broken pipe", "Application timeout", "No route to host")
"""What gloo says when another process is gone, or does not come to a collective."""


def device() -> torch.device:
    """Returns the accelerator of this process, or the CPU when there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", env.local_rank() % torch.cuda.device_count())
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
    if env.world_size() == 1 or torch_dist.is_initialized():
        return
    _name_interface(env.master_address())
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    join_s = min(join_s, deadline_s)
    try:
        torch_dist.init_process_group(backend, timeout=timedelta(seconds=join_s))
    except torch_dist.DistError as error:
        where = f"{env.master_address()}, port {env.master_port()}"
        if "EADDRINUSE" in str(error):
            raise ValueError(
                f"the processes were to meet at {where}, which another program has taken; give another: engine.port=N, "
                "or the launcher's own option (torchrun: --master-port, deepspeed: --master_port)"
            ) from None
        raise torch_dist.DistStoreError(
            f"{env.world_size()} processes were to meet at {where}, but not all came within {join_s:.0f} s"
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
    gathered: list[object] = [None] * env.world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def as_on_first(value: T) -> T:
    """Returns the first process's value on every process; the others' are not looked at."""
    return cast(T, gather_objects(value)[0])
