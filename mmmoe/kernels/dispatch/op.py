"""Rows of tokens to the order of experts: each row is read once and written to the places of its K slots.

Its gradient is `combine` with gates of one: K rows are read and added, nothing is scattered, so no atomics and the same
sum every time.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmmoe.kernels.backend import has_kernels, launch
from mmmoe.kernels.combine.op import gather_sum
from mmmoe.kernels.library import register
from mmmoe.kernels.places import check_inverse, check_places, check_rows


def dispatch(x_ND: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    """Returns rows (S, D) in the order of experts: x[order[p] // K] at place p, zeros where order[p] is -1.

    Args:
        x_ND: float32, bfloat16, float16 or float64; any strides, copied if not contiguous. Differentiable.
        order_S: slot at each place, as `route_topk` gives it; S = N * K, K from 1 to 8.
        inverse_S: place of each slot, -1 for one that is left out.

    Raises:
        ValueError: A type, shape or device that does not fit; on a CPU also a place that does not exist. On a GPU
            nobody waits to look: a slot with such a place goes nowhere, and `combine` makes its token NaN.
    """
    check_rows("x", x_ND, ("order", order_S), ("inverse", inverse_S))
    check_places(order_S, inverse_S, x_ND.shape[0])
    rows_SD: Tensor = _dispatch(x_ND, order_S, inverse_S)
    return rows_SD


def _run(x_ND: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    num_tokens, width = x_ND.shape
    num_chosen = order_S.numel() // max(num_tokens, 1)
    check_inverse(order_S, inverse_S)
    if not has_kernels(x_ND):
        if num_tokens == 0:
            return _fake(x_ND, order_S, inverse_S)
        token_S = order_S.clamp(min=0) // num_chosen
        return x_ND.index_select(0, token_S).masked_fill_((order_S < 0)[:, None], 0)
    x_ND = x_ND.contiguous()
    rows_SD = _fake(x_ND, order_S, inverse_S)
    launch(
        "mmmoe_dispatch", x_ND, order_S.contiguous(), inverse_S.contiguous(), rows_SD,
        num_tokens, num_chosen, width * x_ND.element_size(), device=x_ND.device,
    )  # fmt: skip
    return rows_SD


def _fake(x_ND: Tensor, order_S: Tensor, inverse_S: Tensor) -> Tensor:
    return x_ND.new_empty(order_S.shape[0], x_ND.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.num_tokens = inputs[0].shape[0]
    ctx.save_for_backward(inputs[2])


def _backward(ctx: Any, drows_SD: Tensor) -> tuple[Tensor | None, ...]:
    (inverse_S,) = ctx.saved_tensors
    return gather_sum(drows_SD, None, inverse_S, ctx.num_tokens), None, None


_dispatch = register(
    "dispatch(Tensor x, Tensor order, Tensor inverse) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
