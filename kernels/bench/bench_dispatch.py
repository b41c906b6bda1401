"""Rows to the order of experts, and back by the gradient, each beside its way in torch; on a GPU beside a copy.

mmmoe bench dispatch [tokens=4096 width=1024 experts=8 rounds=30]

The copy moves the least bytes that the op can: a row read once and written K times, or K rows read and one written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmmoe.kernels.combine.op import gather_sum
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.measure import Result, Run, compare, difference, rotating, take_turns
from mmmoe.kernels.workload import Workload, sizes_of_rows, workloads

DEFAULTS = sizes_of_rows(rounds=30)
COPY = "copy of the least bytes"


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields forward and backward of each workload."""
    for load in workloads(sizes, device):
        routing = load.routing()
        token_S = routing.order_S // load.chosen

        def add(d_SD: Tensor, load: Workload = load, token_S: Tensor = token_S) -> Tensor:
            return d_SD.new_zeros(load.tokens, load.width).index_add_(0, token_S, d_SD)

        forward = {
            "own": lambda x, r=routing: dispatch(x, r.order_S, r.inverse_S),
            "index_select": lambda x, t=token_S: x.index_select(0, t),
        }
        backward = {"own": lambda d, r=routing, n=load.tokens: gather_sum(d, None, r.inverse_S, n), "index_add": add}
        yield from _compared(f"dispatch, {load.name}, forward", forward, load, load.tokens, sizes["rounds"])
        slots = load.tokens * load.chosen
        yield from _compared(f"dispatch, {load.name}, backward", backward, load, slots, sizes["rounds"])


def _compared(
    name: str, ways: dict[str, Callable[[Tensor], Tensor]], load: Workload, count: int, rounds: int
) -> Iterator[Result]:
    _, versus = ways
    rows = load.rows(count)
    error = difference(ways["own"](rows), ways[versus](rows))

    def draw(way: Callable[[Tensor], Tensor]) -> Run:
        rows = load.rows(count)
        return lambda: way(rows)

    runs = {name: rotating(lambda way=way: draw(way), load.device) for name, way in ways.items()}
    if load.device.type == "cuda":
        runs[COPY] = rotating(lambda: load.copy((1 + load.chosen) * load.tokens), load.device)
    times = take_turns(runs, rounds, load.device)
    yield compare(name, times["own"], versus, times[versus], error=error)
    if COPY in times:
        yield compare(name, times["own"], COPY, times[COPY], bound=1.25)
