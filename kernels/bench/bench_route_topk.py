"""Routing beside the torch calls that everybody writes, softmax, topk and argsort, which give no inverse and no counts.

mmmoe bench route_topk [tokens=8192 rounds=60]

On a GPU also as a replayed CUDA graph, against 15 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmmoe.kernels.measure import Result, Run, compare, difference, rotating, take_turns
from mmmoe.kernels.route_topk.op import route_topk

DEFAULTS = {"tokens": 8192, "rounds": 60}
SHAPES = ((8, 2), (64, 4), (128, 8))
"""Experts and how many of them a token chooses."""
VERSUS = "softmax, topk, argsort"
GRAPH_SECONDS = 15e-6


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields the forward, and the forward with backward, of each shape."""
    for experts, chosen in SHAPES:
        yield from _shape(sizes["tokens"], experts, chosen, sizes["rounds"], device)


def _shape(tokens: int, experts: int, chosen: int, rounds: int, device: torch.device) -> Iterator[Result]:
    logits_NE = torch.randn(tokens, experts, device=device)
    grad_NK = torch.randn(tokens, chosen, device=device)
    name = f"route_topk, E {experts}, K {chosen}"
    error = difference(route_topk(logits_NE, chosen).gate_NK, _torch_sequence(logits_NE, chosen)[0])

    def own(x_NE: Tensor) -> Tensor:
        return route_topk(x_NE, chosen).gate_NK

    def other(x_NE: Tensor) -> Tensor:
        return _torch_sequence(x_NE, chosen)[0]

    ways = {"own": own, VERSUS: other}
    for what, backward, bound_there in (("forward", False, 0.2), ("forward and backward", True, None)):

        def draw(way: str, backward: bool = backward) -> Run:
            x_NE = torch.randn_like(logits_NE).requires_grad_(backward)
            if not backward:
                return lambda: ways[way](x_NE)
            return lambda: torch.autograd.grad(ways[way](x_NE), x_NE, grad_NK)

        times = take_turns({way: rotating(lambda way=way: draw(way), device) for way in ways}, rounds, device)  # type: ignore[misc]  # a default binds the loop's way
        bound = 1.0 if device.type == "cpu" else bound_there
        yield compare(f"{name}, {what}", times["own"], VERSUS, times[VERSUS], bound=bound, error=error)
    if device.type == "cuda":
        seconds = take_turns({"graph": _graph(logits_NE, chosen)}, rounds, device)["graph"]
        limit = [GRAPH_SECONDS] * len(seconds)
        yield compare(f"{name}, CUDA graph", seconds, "15 microseconds", limit, bound=1.0, error=error)


def _torch_sequence(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    gate_NK, expert_NK = logits_NE.softmax(-1).topk(num_chosen, -1)
    return gate_NK, torch.argsort(expert_NK.reshape(-1), stable=True)


def _graph(logits_NE: Tensor, num_chosen: int) -> Run:
    route_topk(logits_NE, num_chosen)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        route_topk(logits_NE, num_chosen)
    return graph.replay
