"""Expert-parallel parameters under DeepSpeed: its groups, its marks, and what makes it look for them.

DeepSpeed reduces and shards a parameter over the processes that hold the same experts if the parameter says so and the
model has one of DeepSpeed's own MoE layers. Ours are not, so a stand-in is shown while the engine is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed.comm
import torch.distributed as torch_dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups as deepspeed_group_table
from torch import nn

from mmmoe.engine.expert_groups import ExpertGroups, is_share

STAND_IN = "deepspeed_moe_stand_in"


class StandIn(MoE):  # type: ignore[misc]  # deepspeed has no types
    """A module without parameters that DeepSpeed takes for one of its MoE layers.

    It knows expert parallelism by the class of a module alone (0.19.8, engine._configure_distributed_model).
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_experts = 1

    def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
        """Leaves the groups as they are: they exist already."""


def deepspeed_groups(size: int) -> ExpertGroups:
    """Returns DeepSpeed's expert-parallel and expert-data-parallel groups, made if they are not there. Collective."""
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(dist_backend=torch_dist.get_backend())
    deepspeed_group_table._create_expert_and_data_parallel(size)
    name = group_name(size)
    return ExpertGroups(
        torch_dist.get_rank() % size,
        size,
        deepspeed_group_table._get_expert_parallel_group(name),
        deepspeed_group_table._get_expert_data_parallel_group(name),
    )


def group_name(size: int) -> str:
    """Returns the name that DeepSpeed gives the groups of a size."""
    return f"ep_size_{size}"


def mark(module: nn.Module, size: int) -> None:
    """Tells DeepSpeed which parameters other processes hold the rest of, frozen ones too (it would broadcast them)."""
    for parameter in module.parameters():
        if is_share(parameter):
            parameter.allreduce = False  # type: ignore[attr-defined]  # DeepSpeed's mark
            parameter.group_name = group_name(size)  # type: ignore[attr-defined]  # DeepSpeed's mark


def split_groups(param_groups: Iterable[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Returns AdamW's groups with expert shares in groups of their own, which DeepSpeed wants marked."""
    out: list[dict[str, Any]] = []
    for group in param_groups:
        shared = [parameter for parameter in group["params"] if not is_share(parameter)]
        shares = [parameter for parameter in group["params"] if is_share(parameter)]
        if shared:
            out.append(group | {"params": shared})
        if shares:
            out.append(group | {"params": shares, "moe": True, "name": group_name(size)})
    return out


@contextmanager
def shown_as_moe(module: nn.Module, has_shares: bool) -> Iterator[None]:
    """Inside, DeepSpeed finds an MoE layer in the model if spread experts train (it wants a parameter group then)."""
    if not has_shares:
        yield
        return
    module.add_module(STAND_IN, StandIn())
    try:
        yield
    finally:
        del module._modules[STAND_IN]
