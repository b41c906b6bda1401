"""The order of rows to ranks beside sorting in torch, and the bytes that sending once saves.

mmmoe bench send_order [tokens=8192 experts=64 rounds=40]
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmmoe.kernels.measure import Result, compare, compare_amounts, take_turns
from mmmoe.kernels.send_order.op import send_order

DEFAULTS = {"tokens": 8192, "experts": 64, "rounds": 40}


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields the time of the op, and rows sent over rows chosen, for K and numbers of ranks."""
    for chosen, ranks in ((2, 4), (8, 4), (8, 16)):
        expert_NK = torch.randn(sizes["tokens"], sizes["experts"], device=device).topk(chosen).indices
        share = sizes["experts"] // ranks
        runs = {
            "own": lambda e=expert_NK, g=ranks: send_order(e, sizes["experts"], g),
            "unique": lambda e=expert_NK, s=share: _by_unique(e // s),
        }
        times = take_turns(runs, sizes["rounds"], device)
        name = f"send_order, K {chosen}, {ranks} ranks"
        yield compare(name, times["own"], "sort and unique in torch", times["unique"])
        sent = float(send_order(expert_NK, sizes["experts"], ranks).offset_E1[-1])
        yield compare_amounts(f"{name}, rows sent", sent, "one row a choice", expert_NK.numel(), "rows")


def _by_unique(rank_NK: Tensor) -> Tensor:
    token_N1 = torch.arange(rank_NK.shape[0], device=rank_NK.device)[:, None]
    return torch.unique(rank_NK * rank_NK.shape[0] + token_N1)
