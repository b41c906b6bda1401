"""Expert parallelism as the engines see it: who holds which experts, and stacks cut along the expert axis.

Consecutive processes form a group that holds all experts together (ranks 0..G-1, G..2G-1, ...); processes with the same
place in their groups hold the same experts and add up their gradients. This is DeepSpeed's layout, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mmmoe import dist, env
from mmmoe.engine.spec import EngineSpec


@dataclass(frozen=True)
class ExpertGroups:
    """This process's place among those that share experts."""

    rank: int
    """Place in the group that holds all experts together."""
    size: int
    """Processes of that group."""
    group: Any
    """torch.distributed's group of them."""
    data_group: Any
    """Group of the processes that hold the same experts as this one."""

    def gather(self, own: Tensor) -> Tensor:
        """Returns the whole stack (E, ...) of a share (E / G, ...). Collective over `group`."""
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch_dist.all_gather(parts, own.contiguous(), group=self.group)
        return torch.cat(parts)

    def cut(self, whole: Tensor) -> Tensor:
        """Returns this process's share of a whole stack."""
        return whole.chunk(self.size)[self.rank]

    def norm(self, shared: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
        """Returns the norm over what every process has and the shares of all processes. Collective over `group`."""
        return (squared_sum(shared) + self._sum(squared_sum(shares))).sqrt()

    def _sum(self, number: Tensor) -> Tensor:
        torch_dist.all_reduce(number, group=self.group)
        return number


def squared_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the sum of squares of all numbers, float32; zero of no tensors."""
    if not tensors:
        return torch.zeros(())
    return torch.stack([torch.linalg.vector_norm(tensor).float() for tensor in tensors]).square().sum()


def is_share(parameter: Tensor) -> bool:
    """Says whether a parameter is a stack of experts of which other processes hold the rest.

    Models mark such parameters with the attribute `is_expert_share`.
    """
    return bool(getattr(parameter, "is_expert_share", False))


def whole_shapes(
    named_parameters: Sequence[tuple[str, Tensor]], experts: ExpertGroups | None
) -> dict[str, tuple[int, ...]]:
    """Returns each parameter's shape with the experts of all processes."""
    size = experts.size if experts is not None else 1
    return {
        name: (parameter.shape[0] * size, *parameter.shape[1:]) if is_share(parameter) else tuple(parameter.shape)
        for name, parameter in named_parameters
    }


def make_groups(spec: EngineSpec) -> ExpertGroups | None:
    """Returns the expert-parallel groups of a run, None where every process holds all experts. Collective.

    Raises:
        ValueError: The processes cannot be cut into groups of `engine.ep_size`.
    """
    world, size = env.world_size(), spec.ep_size
    if size == 1:
        return None
    if world % size:
        raise ValueError(f"engine.ep_size {size} must divide the number of processes, {world}")
    dist.start()
    if spec.kind == "deepspeed":
        # Imported here for the reason given in build.py.
        from mmmoe.engine.deepspeed_experts import deepspeed_groups

        return deepspeed_groups(size)
    rank = env.rank()
    together = [torch_dist.new_group(range(first, first + size)) for first in range(0, world, size)]
    alike = [torch_dist.new_group(range(first, world, size)) for first in range(size)]
    return ExpertGroups(rank % size, size, together[rank // size], alike[rank % size])
