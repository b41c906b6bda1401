"""What a step costs in bytes: what autograd keeps for the backward, and the most that lives at once.

On a GPU the most is what torch's allocator counts. On a CPU it is added up from every allocation and release that torch
reports to its profiler, those inside of its own and of our ops too; what a library takes without asking torch (oneDNN's
and MKL's packed panels, the C++ kernels' own scratch) is not seen there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


@dataclass(frozen=True)
class Weighed:
    """The value of a step's forward and its bytes beyond weights and inputs."""

    value: Tensor
    kept: int
    """Bytes that the forward leaves for the backward."""
    peak: int
    """The most bytes that live at once in forward and backward: outputs, gradients and everything between."""


def weigh(
    forward: Callable[[], Tensor], backward: Callable[[Tensor], object], given: Iterable[Tensor], device: torch.device
) -> Weighed:
    """Runs a step and returns its bytes; those of `given` count as no part of it."""
    mine = {t.untyped_storage().data_ptr() for t in given}
    kept: dict[int, int] = {}
    values: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return t.detach()  # the same bytes; the tensor itself would keep its own graph alive

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = forward()
        gradients = backward(y)
        values.append(y.detach())
        del gradients

    if device.type == "cuda":
        step()  # once before, for the workspaces that torch's libraries take at their first use and keep
        kept.clear()
        values.clear()
    peak = peak_of(step, device)
    return Weighed(values[0], sum(kept.values()), peak)


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that live at once in a run, beyond those that lived before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells each start and stop on the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    changes: list[tuple[int, int]] = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0))
