"""LoRA experts: what `auto` chooses beside the best strategy, over E * R and K.

mmmoe bench grouped_lora [tokens=4096 width=1024 rank=16 rounds=5]

Forward and backward with every gradient, of the op alone, D and F both `width`. On a GPU in bfloat16, and beside
ScatterMoE where that is installed. A whole layer beside plain LoRA and others: bench_lora.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from mmmoe.kernels.grouped_lora.cost import Sizes, Strategy, cheapest
from mmmoe.kernels.grouped_lora.fused import can_fuse
from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.kernels.measure import Result, Run, compare, difference, take_turns

DEFAULTS = {"tokens": 4096, "width": 1024, "rank": 16, "rounds": 5}
RANKS = (64, 128, 256, 512, 1024, 2048, 4096)
CHOSEN = (1, 2, 4, 8)
SCALE = 2.0
SCATTERMOE = "ScatterMoE"


class Drawn:
    """Inputs of one shape, with gradients wanted of all of them."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        tokens, width, out, experts, rank, chosen = astuple(sizes)
        self.sizes = sizes
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def draw(*shape: int, size: float = 1.0) -> Tensor:
            return (torch.randn(shape, device=device) * size).to(dtype).requires_grad_()

        self.x, self.base, self.dy = draw(tokens, width), draw(tokens, out), draw(tokens, out).detach()
        self.a = torch.nn.Parameter(draw(experts, rank, width, size=width**-0.5).detach())
        self.b = torch.nn.Parameter(draw(experts, out, rank, size=0.1).detach())
        logits = torch.randn(tokens, experts, device=device)
        gate, self.index = logits.softmax(1).topk(chosen)
        self.gate = gate.to(dtype).requires_grad_()

    def op(self, strategy: Strategy) -> Tensor:
        """Returns the op's result by a strategy."""
        return grouped_lora(self.base, self.x, self.a, self.b, self.index, self.gate, scale=SCALE, strategy=strategy)

    def scattermoe(self) -> Callable[[], Tensor]:
        """Returns the same by ScatterMoE's experts without an activation, whose hidden width is the rank."""
        from scattermoe.mlp import MLP

        _, width, _, experts, rank, chosen = astuple(self.sizes)
        mlp = MLP(width, rank, experts, chosen, activation=torch.nn.Identity()).to(self.x)
        mlp.experts.weight, mlp.output_experts.weight = self.a, self.b
        return lambda: self.base + mlp(self.x, self.gate, self.index) * SCALE

    def step(self, way: Callable[[], Tensor]) -> Run:
        """Returns a forward and backward of one of the above."""
        leaves = [self.x, self.a, self.b, self.gate, self.base]
        return lambda: torch.autograd.grad(way(), leaves, self.dy, allow_unused=True)


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields a result for each sum of ranks and number of choices, two where there is a peer."""
    for ranks in RANKS:
        for chosen in CHOSEN:
            yield from _point(sizes, ranks, chosen, device)


def _point(sizes: dict[str, int], ranks: int, chosen: int, device: torch.device) -> Iterator[Result]:
    rank = min(sizes["rank"], ranks // max(CHOSEN))  # so that eight experts can be chosen everywhere
    width = sizes["width"]
    drawn = Drawn(Sizes(sizes["tokens"], width, width, ranks // rank, rank, chosen), device)
    strategies: list[Strategy] = ["masked", "permuted", *(["fused"] if can_fuse(drawn.x) else [])]
    auto = cheapest(drawn.sizes, device.type, can_fuse=can_fuse(drawn.x))
    values = [drawn.op(strategy) for strategy in strategies]
    error = max(difference(value, values[0]) for value in values[1:])
    runs: dict[str, Run] = {strategy: drawn.step(lambda s=strategy: drawn.op(s)) for strategy in strategies}  # type: ignore[misc]
    if device.type == "cuda" and find_spec("scattermoe") is not None:
        runs[SCATTERMOE] = drawn.step(drawn.scattermoe())
    times = take_turns(runs, sizes["rounds"], device)
    best = min(strategies, key=lambda strategy: median(times[strategy]))
    name = f"E * R {ranks}, K {chosen}, auto ({auto})"
    yield compare(name, times[auto], f"best ({best})", times[best], bound=1.10, error=error)
    if SCATTERMOE in times:
        yield compare(name, times[auto], SCATTERMOE, times[SCATTERMOE])
