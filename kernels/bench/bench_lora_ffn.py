"""A gated block with LoRA experts beside the frozen block, plain LoRA and MoE-PEFT's way of computing the same.

mmmoe bench lora_ffn [tokens=4096 width=1024 inner=4096 rank=16 rounds=5]

Forward and backward with every gradient but the frozen weights'. Plain LoRA is written as PEFT writes it, of rank
K * rank: the same number of active ranks. MoE-PEFT's way: the frozen gate and up once a token, all else for each expert
on its tokens, the down projection included (its loop and operations, written anew). Bytes are those that autograd keeps
for the backward, weights and inputs left out; they stand in MiB where times stand in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.lora_ffn.op import Factors, Frozen, lora_ffn
from mmmoe.kernels.measure import Result, compare, difference, take_turns

DEFAULTS = {"tokens": 4096, "width": 1024, "inner": 4096, "rank": 16, "rounds": 5}
SHAPES = ((8, 2, 1), (8, 4, 2), (64, 2, 4))
"""Experts, chosen, and by how much fewer tokens that is measured."""
FROZEN, PLAIN, MOE_PEFT = "frozen block", "plain LoRA of rank K * R", "MoE-PEFT's way"
TIME_BOUNDS = {(8, 2): {PLAIN: 1.15}}
BYTE_BOUNDS = {(8, 2): {FROZEN: 0.75, MOE_PEFT: 0.25}, (8, 4): {FROZEN: 0.80}}
SCALE = 2.0


class Drawn:
    """Inputs, weights and factors of one shape."""

    def __init__(self, sizes: dict[str, int], experts: int, chosen: int, fewer: int, device: torch.device) -> None:
        tokens, width, inner, rank = sizes["tokens"] // fewer, sizes["width"], sizes["inner"], sizes["rank"]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def draw(*shape: int, size: float = 0.02) -> Tensor:
            return (torch.randn(shape, device=device) * size).to(dtype).requires_grad_()

        def pairs(*lead: int, ranks: int) -> list[Tensor]:
            wide, narrow = (*lead, ranks, width), (*lead, inner, ranks)
            return [draw(*s) for s in (wide, narrow, wide, narrow, (*lead, ranks, inner), (*lead, width, ranks))]

        self.x, self.dy = draw(tokens, width, size=1.0), draw(tokens, width, size=1.0).detach()
        self.frozen = Frozen(*(draw(*s).detach() for s in ((inner, width), (inner, width), (width, inner))))
        self.factors, self.plain_factors = pairs(experts, ranks=rank), pairs(ranks=chosen * rank)
        gate, self.index = torch.randn(tokens, experts, device=device).softmax(1).topk(chosen)
        self.gate = (gate / gate.sum(1, keepdim=True)).to(dtype).requires_grad_()

    def own(self) -> Tensor:
        """Returns the op's result."""
        ag, bg, au, bu, ad, bd = self.factors
        pairs = Factors(ag, bg), Factors(au, bu), Factors(ad, bd)
        return lora_ffn(self.x, self.frozen, *pairs, self.index, self.gate, scale=SCALE)

    def base(self) -> Tensor:
        """Returns the frozen block's result."""
        gate, up, down = self.frozen
        return F.linear(F.silu(F.linear(self.x, gate)) * F.linear(self.x, up), down)

    def plain(self) -> Tensor:
        """Returns the block with one LoRA on each projection."""
        gate, up, down = self.frozen
        ag, bg, au, bu, ad, bd = self.plain_factors
        return _adapted(F.silu(_adapted(self.x, gate, ag, bg)) * _adapted(self.x, up, au, bu), down, ad, bd)

    def moe_peft(self) -> Tensor:
        """Returns the same function as the op, expert by expert."""
        gate, up, down = self.frozen
        ag, bg, au, bu, ad, bd = (factor.unbind() for factor in self.factors)  # one gradient is written for each expert
        base_gate, base_up = F.linear(self.x, gate), F.linear(self.x, up)
        y = torch.zeros_like(self.x)
        for e in range(len(ag)):
            token, choice = torch.where(self.index == e)
            x = self.x[token]
            h = F.silu(base_gate[token] + _update(x, ag[e], bg[e])) * (base_up[token] + _update(x, au[e], bu[e]))
            y = y.index_add(0, token, _adapted(h, down, ad[e], bd[e]) * self.gate[token, choice, None])
        return y

    def step(self, way: Callable[[], Tensor]) -> tuple[Tensor | None, ...]:
        """Runs a forward and backward of one of the above."""
        leaves = [self.x, self.gate, *self.factors, *self.plain_factors]
        return torch.autograd.grad(way(), leaves, self.dy, allow_unused=True)

    def kept(self, way: Callable[[], Tensor]) -> float:
        """Returns the MiB that a way keeps for its backward."""
        given = (self.x, self.gate, *self.frozen, *self.factors, *self.plain_factors)
        mine = {t.untyped_storage().data_ptr() for t in given}
        kept: dict[int, Tensor] = {}

        def keep(t: Tensor) -> Tensor:
            return kept.setdefault(t.untyped_storage().data_ptr(), t)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            way()
        return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in mine) / 2**20


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields time and bytes of each shape against each way."""
    for experts, chosen, fewer in SHAPES:
        drawn = Drawn(sizes, experts, chosen, fewer, device)
        ways = {"own": drawn.own, FROZEN: drawn.base, PLAIN: drawn.plain, MOE_PEFT: drawn.moe_peft}
        runs = {name: partial(drawn.step, way) for name, way in ways.items()}
        times = take_turns(runs, sizes["rounds"], device)
        error = difference(drawn.own(), drawn.moe_peft())
        name = f"lora_ffn, E {experts}, K {chosen}"
        for versus in (FROZEN, PLAIN, MOE_PEFT):
            bound = TIME_BOUNDS.get((experts, chosen), {}).get(versus) if device.type == "cpu" else None
            wrong = error if versus == MOE_PEFT else None
            yield compare(f"{name}, time", times["own"], versus, times[versus], bound=bound, error=wrong)
        own = drawn.kept(drawn.own)
        for versus in (FROZEN, MOE_PEFT):
            bound = BYTE_BOUNDS.get((experts, chosen), {}).get(versus) if device.type == "cpu" else None
            yield compare(f"{name}, bytes kept", [own / 1e3], versus, [drawn.kept(ways[versus]) / 1e3], bound=bound)


def _update(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.linear(x, a), b) * SCALE


def _adapted(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, weight) + _update(x, a, b)
