"""The round trip, dispatch and combine with experts that do nothing, beside what transformers and DeepSpeed do.

mmmoe bench combine [tokens=4096 width=1024 experts=8 rounds=15]

Forward and backward, the gradient of the gates included. The peers: transformers' experts (gather, scale, gather back,
sum: integrations/moe.py of 5.23) and DeepSpeed's own functions for its sparse path, with a capacity that drops nothing,
where it is installed. On a GPU also each kernel alone beside a copy that moves its least bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from mmmoe.kernels.combine.op import combine, gather_sum
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.measure import Result, Run, compare, difference, rotating, take_turns
from mmmoe.kernels.route_topk.reference import Routing
from mmmoe.kernels.workload import Workload, sizes_of_rows, workloads

DEFAULTS = sizes_of_rows(rounds=15)
TRANSFORMERS, DEEPSPEED, ADDED, COPY = "transformers", "DeepSpeed", "gather, index_add", "copy of the least bytes"
BOUNDS = {"cpu": {TRANSFORMERS: 1.0, DEEPSPEED: 0.75}, "cuda": {TRANSFORMERS: 0.5, DEEPSPEED: 0.5}}
Way = Callable[[Tensor, Tensor], Tensor]


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields the round trip of each workload against each peer, and on a GPU the kernels against copies."""
    for load in workloads(sizes, device):
        routing = load.routing()
        ways = _ways(load, routing)
        values = {name: way(*_leaves(load, routing, seed=0)) for name, way in ways.items()}
        runs = {name: rotating(lambda way=way: _draw(way, load, routing), device) for name, way in ways.items()}  # noqa: B023
        times = take_turns(runs, sizes["rounds"], device)
        for versus in list(ways)[1:]:
            bound = BOUNDS[device.type].get(versus)
            error = difference(values["own"], values[versus])
            name = f"round trip, {load.name}"
            yield compare(name, times["own"], versus, times[versus], bound=bound, error=error)
        if device.type == "cuda":
            yield from _beside_copies(load, routing, sizes["rounds"])


def _ways(load: Workload, routing: Routing) -> dict[str, Way]:
    order_S, inverse_S = routing.order_S, routing.inverse_S
    token_S, tokens, chosen = order_S // load.chosen, load.tokens, load.chosen

    def own(x_ND: Tensor, gate_NK: Tensor) -> Tensor:
        return combine(dispatch(x_ND, order_S, inverse_S), gate_NK, order_S, inverse_S)

    def transformers(x_ND: Tensor, gate_NK: Tensor) -> Tensor:
        rows_SD = x_ND[token_S] * gate_NK.reshape(-1)[order_S].unsqueeze(-1).to(x_ND.dtype)
        return rows_SD[inverse_S].view(tokens, chosen, -1).sum(1)

    def added(x_ND: Tensor, gate_NK: Tensor) -> Tensor:
        rows_SD = x_ND[token_S] * gate_NK.reshape(-1)[order_S].unsqueeze(-1).to(x_ND.dtype)
        return torch.zeros_like(x_ND).index_add(0, token_S, rows_SD)

    ways: dict[str, Way] = {"own": own, TRANSFORMERS: transformers, ADDED: added}
    if find_spec("deepspeed") is not None:
        ways[DEEPSPEED] = _deepspeed(load, routing)
    return ways


def _deepspeed(load: Workload, routing: Routing) -> Way:
    from deepspeed.moe import sharded_moe

    capacity = int(routing.count_E.max())
    location_NK = routing.inverse_S.view(load.tokens, -1) - routing.offset_E1[routing.expert_NK]
    chosen_first = (routing.expert_NK.t().contiguous(), location_NK.t().contiguous())
    slots = sharded_moe._route_slots(*chosen_first, load.experts, capacity)

    def way(x_ND: Tensor, gate_NK: Tensor) -> Tensor:
        rows = sharded_moe._sparse_encode(x_ND, slots, load.experts, capacity)
        y_ND: Tensor = sharded_moe._sparse_decode(rows.flatten(0, 1), slots, gate_NK.t(), load.tokens)
        return y_ND

    return way


def _leaves(load: Workload, routing: Routing, seed: int | None = None) -> tuple[Tensor, Tensor]:
    if seed is not None:
        torch.manual_seed(seed)
    return load.rows(load.tokens).requires_grad_(), routing.gate_NK.detach().clone().requires_grad_()


def _draw(way: Way, load: Workload, routing: Routing) -> Run:
    leaves = _leaves(load, routing)
    grad_ND = load.rows(load.tokens)
    return lambda: torch.autograd.grad(way(*leaves), leaves, grad_ND)


def _beside_copies(load: Workload, routing: Routing, rounds: int) -> Iterator[Result]:
    order_S, inverse_S, gate_NK = routing.order_S, routing.inverse_S, routing.gate_NK
    slots = load.tokens * load.chosen

    def forward() -> Run:
        rows_SD = load.rows(slots)
        return lambda: gather_sum(rows_SD, gate_NK, inverse_S, load.tokens)

    def backward() -> Run:
        dy_ND, rows_SD = load.rows(load.tokens), load.rows(slots)
        return lambda: torch.ops.mmmoe.combine_backward(dy_ND, rows_SD, gate_NK, order_S, inverse_S)

    for what, draw, rows in (
        ("forward", forward, load.tokens + slots),
        ("backward", backward, load.tokens + 2 * slots),
    ):
        runs = {"own": rotating(draw, load.device), COPY: rotating(lambda rows=rows: load.copy(rows), load.device)}  # type: ignore[misc]
        times = take_turns(runs, rounds, load.device)
        yield compare(f"combine, {load.name}, {what}", times["own"], COPY, times[COPY], bound=1.25)
