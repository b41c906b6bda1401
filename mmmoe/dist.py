"""Who am I among the processes: the only place that reads the launcher's environment variables."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as torch_dist

LET_GO_S = 0.1


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
    """Says whether a launcher (deepspeed, torchrun, slurm through ours) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def device() -> torch.device:
    """Returns the accelerator of this process, or the CPU when there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def start(deadline_s: int = 1800) -> None:
    """Joins the process group: nccl on GPUs, gloo on CPUs. One process joins nothing."""
    if world_size() == 1 or torch_dist.is_initialized():
        return
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    torch_dist.init_process_group(backend, timeout=timedelta(seconds=deadline_s))


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


def child_environment(rank: int, world_size: int, port: int, threads: int) -> dict[str, str]:
    """Returns the environment of one process of a run that this machine starts itself."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
