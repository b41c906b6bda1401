"""Low-rank updates of several experts added to a frozen layer's output: y = W x + scale * sum_k g_k B_e A_e x.

Three strategies compute the same function. `masked` multiplies every token with all experts' A at once, zeroes the
ranks of experts that were not chosen and multiplies with all B at once: two large products, E / K times the arithmetic.
`permuted` multiplies with all A, brings only the rank-wide rows of one expert together and multiplies those with its B.
`fused` does no more arithmetic than the chosen experts need and moves no row (fused.py); it needs the compiled kernels.
`auto` takes the one that cost.py expects to be cheapest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.grouped_lora.cost import Sizes, Strategy, cheapest
from mmmoe.kernels.grouped_lora.fused import can_fuse, fused_lora
from mmmoe.kernels.grouped_lora.permuted import permuted_lora
from mmmoe.kernels.order import MOST_EXPERTS
from mmmoe.kernels.places import check_range, check_rows


def grouped_lora(
    base_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor | None = None,
    *,
    scale: float,
    strategy: Strategy = "auto",
) -> Tensor:
    """Returns base + scale * sum over k of gate[n, k] * B[e] A[e] x[n], with e = index[n, k].

    Args:
        base_NF: output of the frozen layer; left unchanged.
        x_ND: input of the layer, of the same type.
        a_ERD: first factors. Every expert takes part in the graph, chosen or not.
        b_EFR: second factors.
        index_NK: experts of each token, int64; one that stands twice counts twice.
        gate_NK: weight of each choice; None stands for ones.
        scale: alpha / rank.
        strategy: how; `auto` decides by shape, type and device.

    Raises:
        ValueError: Shapes, types or devices that do not fit, an expert out of range (on a GPU, where nobody waits to
            look, the result is then NaN), `fused` where there are no kernels for it.
    """
    _check(base_NF, x_ND, a_ERD, b_EFR, index_NK, gate_NK)
    num_experts, rank, width = a_ERD.shape
    num_chosen = index_NK.shape[1]
    if torch.is_autocast_enabled(x_ND.device.type):  # types are the caller's, whatever the strategy
        with torch.autocast(x_ND.device.type, enabled=False):
            return grouped_lora(base_NF, x_ND, a_ERD, b_EFR, index_NK, gate_NK, scale=scale, strategy=strategy)
    if strategy not in ("auto", "masked", "permuted", "fused"):
        raise ValueError(f"strategy is {strategy!r}; give one of auto, masked, permuted, fused")
    if index_NK.device.type != "cpu":
        gate_NK = x_ND.new_ones(index_NK.shape) if gate_NK is None else gate_NK
        index_NK, gate_NK = marked(index_NK, gate_NK, num_experts)
    if strategy == "auto":
        sizes = Sizes(x_ND.shape[0], width, base_NF.shape[1], num_experts, rank, num_chosen)
        strategy = cheapest(sizes, x_ND.device.type, can_fuse=can_fuse(x_ND))
    if strategy == "fused":
        if not can_fuse(x_ND):
            raise ValueError(f"strategy fused: no kernels for {x_ND.dtype} on {x_ND.device}; `mmmoe doctor` says why")
        return fused_lora(base_NF, x_ND, a_ERD, b_EFR, index_NK, gate_NK, scale=scale)
    if not torch.compiler.is_compiling():
        check_range("index", index_NK, num_experts, least=0)
    if strategy == "masked":
        mask_NE = None if num_experts == 1 and gate_NK is None else _mask(x_ND, index_NK, gate_NK, num_experts)
        return masked_lora(base_NF, x_ND, a_ERD, b_EFR, mask_NE, scale=scale)
    return permuted_lora(base_NF, x_ND, a_ERD, b_EFR, index_NK, gate_NK, scale=scale)


def masked_lora(
    base_NF: Tensor, x_ND: Tensor, a_ERD: Tensor, b_EFR: Tensor, mask_NE: Tensor | None, *, scale: float
) -> Tensor:
    """Returns base + scale * sum over e of mask[n, e] * B[e] A[e] x[n] with two dense products (None: ones)."""
    num_experts, rank, width = a_ERD.shape
    z = x_ND @ a_ERD.reshape(num_experts * rank, width).t()
    if mask_NE is not None:
        z = z * mask_NE.to(z.dtype).repeat_interleave(rank, dim=1)
    all_b = b_EFR.permute(0, 2, 1).reshape(num_experts * rank, -1)
    return torch.addmm(base_NF, z, all_b, alpha=scale)


def marked(index_NK: Tensor, gate_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Returns experts in range, and NaN as the gate of those that were not: a GPU's host does not look at them."""
    is_wrong_NK = (index_NK < 0) | (index_NK >= num_experts)
    return index_NK.clamp(0, num_experts - 1), gate_NK.masked_fill(is_wrong_NK, torch.nan)


def _mask(x_ND: Tensor, index_NK: Tensor, gate_NK: Tensor | None, num_experts: int) -> Tensor:
    value_NK = torch.ones_like(index_NK, dtype=x_ND.dtype) if gate_NK is None else gate_NK.to(x_ND.dtype)
    return x_ND.new_zeros(x_ND.shape[0], num_experts).scatter_add(1, index_NK, value_NK)


def _check(
    base_NF: Tensor, x_ND: Tensor, a_ERD: Tensor, b_EFR: Tensor, index_NK: Tensor, gate_NK: Tensor | None
) -> None:
    others = [("base", base_NF), ("a", a_ERD), ("b", b_EFR), ("index", index_NK)]
    check_rows("x", x_ND, *others, *([] if gate_NK is None else [("gate", gate_NK)]))
    num_tokens, width = x_ND.shape
    shapes = {name: tuple(tensor.shape) for name, tensor in others}
    if a_ERD.dim() != 3 or a_ERD.shape[2] != width or 0 in a_ERD.shape or a_ERD.shape[0] > MOST_EXPERTS:
        raise ValueError(
            f"a {shapes['a']} must be (experts, rank, {width}), none of them 0, at most {MOST_EXPERTS} experts, "
            f"for x {tuple(x_ND.shape)}"
        )
    if base_NF.dim() != 2 or base_NF.shape[0] != num_tokens or base_NF.shape[1] == 0:
        raise ValueError(f"base {shapes['base']} must have a row for each of {num_tokens} rows of x")
    num_experts, rank, _ = a_ERD.shape
    if shapes["b"] != (num_experts, base_NF.shape[1], rank):
        raise ValueError(f"b {shapes['b']} must be {(num_experts, base_NF.shape[1], rank)} to fit a and base")
    if index_NK.dtype != torch.int64 or index_NK.dim() != 2 or index_NK.shape[0] != num_tokens:
        raise ValueError(f"index must be int64 ({num_tokens}, chosen), got {index_NK.dtype} {shapes['index']}")
    if not 1 <= index_NK.shape[1] <= num_experts:
        raise ValueError(f"index {shapes['index']} chooses {index_NK.shape[1]} experts; 1 to {num_experts} work")
    if gate_NK is not None and gate_NK.shape != index_NK.shape:
        raise ValueError(f"gate {tuple(gate_NK.shape)} must have the shape of index {shapes['index']}")
    types = {name: tensor.dtype for name, tensor in (*others[:3], ("x", x_ND))}
    if len(set(types.values())) > 1:
        raise ValueError(f"base, x, a and b must have one type, got {types}")
