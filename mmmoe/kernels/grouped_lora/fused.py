"""LoRA experts by three small products over slots in expert order; no row as wide as the layer is moved or copied.

With p a place in the order, n its token, e its expert and c[p] = scale * gate (kernels/csrc/grouped_lora.*):

    z[p] = A_e x[n]                      dz[p] = B_e^T dy[n]         shrink
    y[n] = base[n] + sum c[p] B_e z[p]   dx[n] = sum c[p] A_e^T dz[p]    expand
    dB_e = sum c[p] dy[n] z[p]^T         dA_e = sum c[p] dz[p] x[n]^T    outer

Kept for the backward: x, A, B and the rank-wide z. dgate = scale * z . dz costs nothing more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmmoe.kernels.backend import KERNEL_TYPES, TYPE_CODES, has_kernels, launch
from mmmoe.kernels.library import register
from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.places import check_range, exact_type

FUSED_TYPES = {"cpu": (torch.float32, torch.float64), "cuda": KERNEL_TYPES["cuda"]}
"""Types with kernels. On a CPU half types have none: there torch's own products serve."""


def can_fuse(x_ND: Tensor) -> bool:
    """Says whether `fused_lora` runs on a tensor's device and type."""
    return x_ND.dtype in FUSED_TYPES.get(x_ND.device.type, ()) and has_kernels(x_ND)


def fused_lora(
    base_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """Returns what `grouped_lora` returns; only for devices and types that have kernels."""
    y_NF: Tensor = _fused(base_NF, x_ND, a_ERD, b_EFR, index_NK, gate_NK, scale)[0]
    return y_NF


class Slots:
    """The slots in expert order, and the kernels' three products over them; rank-wide rows are float32 (or float64)."""

    def __init__(self, order_S: Tensor, offset_E1: Tensor, num_chosen: int) -> None:
        self.order_S, self.offset_E1, self.num_chosen = order_S, offset_E1, num_chosen

    def shrink(self, rows_NW: Tensor, m: Tensor, *, wide_first: bool) -> Tensor:
        """Returns M_e row[token] (S, R); M is (E, R, W), or (E, W, R) if the wide axis comes first."""
        z_SR = rows_NW.new_empty(self.order_S.numel(), m.shape[2 if wide_first else 1], dtype=exact_type(rows_NW))
        self._launch("shrink", (rows_NW, m), z_SR, rows_NW, wide_first)
        return z_SR

    def expand(self, base_NW: Tensor | None, z_SR: Tensor, m: Tensor, like_NW: Tensor, *, wide_first: bool) -> Tensor:
        """Returns base plus, for each token, the sum of its slots' z M_e, shaped as `like` (N, W)."""
        y_NW = torch.empty_like(like_NW, memory_format=torch.contiguous_format)
        self._launch("expand", (base_NW, z_SR, m), y_NW, y_NW, wide_first)
        return y_NW

    def add_expanded(self, z_SR: Tensor, m: Tensor, y_NW: Tensor, *, wide_first: bool) -> None:
        """Adds to each token of y, contiguous, the sum of its slots' z M_e."""
        self._launch("expand", (y_NW, z_SR, m), y_NW, y_NW, wide_first)

    def outer(self, z_SR: Tensor, rows_NW: Tensor, like: Tensor, *, wide_first: bool) -> Tensor:
        """Returns for each expert the sum over its slots of z row[token], shaped as M; zeros for one without slots."""
        dm = torch.empty_like(like, memory_format=torch.contiguous_format)
        self._launch("outer", (z_SR, rows_NW), dm, rows_NW, wide_first)
        return dm

    def by_place(self, gate_NK: Tensor, z_SR: Tensor) -> Tensor:
        """Returns the gate of each place (S), in the type of z."""
        return gate_NK.reshape(-1)[self.order_S].to(z_SR.dtype)

    def weight(self, gate_NK: Tensor | None, scale: float, z_SR: Tensor) -> Tensor | float:
        """Returns scale * gate of each place (S, 1), or the scale alone."""
        return scale if gate_NK is None else self.by_place(gate_NK, z_SR)[:, None] * scale

    def _launch(
        self, name: str, inputs: tuple[Tensor | None, ...], output: Tensor, rows_NW: Tensor, wide_first: bool
    ) -> None:
        num_experts = self.offset_E1.numel() - 1
        factor = next(t for t in (*inputs, output) if t is not None and t.dim() == 3)
        launch(
            f"mmmoe_lora_{name}", *inputs, self.order_S, self.offset_E1, output, rows_NW.shape[0], self.num_chosen,
            num_experts, factor.shape[2 if wide_first else 1], rows_NW.shape[1], int(wide_first),
            TYPE_CODES[rows_NW.dtype], device=rows_NW.device,
        )  # fmt: skip


def _run(
    base_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    index_NK: Tensor,
    gate_NK: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_range("index", index_NK, a_ERD.shape[0], least=0)
    order = order_by_expert(index_NK.reshape(-1), a_ERD.shape[0])
    slots = Slots(order.order_S, order.offset_E1, index_NK.shape[1])
    z_SR = slots.shrink(x_ND.contiguous(), a_ERD.contiguous(), wide_first=False)
    weighted_SR = z_SR * slots.weight(gate_NK, scale, z_SR)
    y_NF = slots.expand(base_NF.contiguous(), weighted_SR, b_EFR.contiguous(), base_NF, wide_first=True)
    return y_NF, z_SR, order.order_S, order.offset_E1


def _fake(
    base_NF: Tensor, x_ND: Tensor, a_ERD: Tensor, b_EFR: Tensor, index_NK: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_slots = index_NK.shape[0] * index_NK.shape[1]
    return (
        torch.empty_like(base_NF, memory_format=torch.contiguous_format),
        x_ND.new_empty(num_slots, a_ERD.shape[1], dtype=exact_type(x_ND)),
        index_NK.new_empty(num_slots),
        index_NK.new_empty(a_ERD.shape[0] + 1),
    )


def _run_backward(
    dy_NF: Tensor,
    x_ND: Tensor,
    a_ERD: Tensor,
    b_EFR: Tensor,
    gate_NK: Tensor | None,
    z_SR: Tensor,
    order_S: Tensor,
    offset_E1: Tensor,
    scale: float,
    x_wants: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens = x_ND.shape[0]
    slots = Slots(order_S, offset_E1, max(order_S.numel() // max(num_tokens, 1), 1))
    dy_NF, x_ND = dy_NF.contiguous(), x_ND.contiguous()
    a_ERD, b_EFR = a_ERD.contiguous(), b_EFR.contiguous()
    weight_S1 = slots.weight(gate_NK, scale, z_SR)
    dz_SR = slots.shrink(dy_NF, b_EFR, wide_first=True)
    dgate_NK = z_SR.new_empty(0)
    if gate_NK is not None:
        dgate_NK = torch.empty_like(gate_NK, memory_format=torch.contiguous_format)
        dgate_NK.view(-1)[order_S] = ((z_SR * dz_SR).sum(1) * scale).to(gate_NK.dtype)
    db_EFR = slots.outer(z_SR * weight_S1, dy_NF, b_EFR, wide_first=True)
    dz_SR *= weight_S1
    da_ERD = slots.outer(dz_SR, x_ND, a_ERD, wide_first=False)
    dx_ND = slots.expand(None, dz_SR, a_ERD, x_ND, wide_first=False) if x_wants else z_SR.new_empty(0)
    return dx_ND, da_ERD, db_EFR, dgate_NK


def _fake_backward(
    dy_NF: Tensor, x_ND: Tensor, a_ERD: Tensor, b_EFR: Tensor, gate_NK: Tensor | None, z_SR: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, x_wants = rest

    def empty(like: Tensor | None) -> Tensor:
        return z_SR.new_empty(0) if like is None else torch.empty_like(like, memory_format=torch.contiguous_format)

    return empty(x_ND if x_wants else None), empty(a_ERD), empty(b_EFR), empty(gate_NK)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, x_ND, a_ERD, b_EFR, _, gate_NK, scale = inputs
    ctx.save_for_backward(x_ND, a_ERD, b_EFR, gate_NK, *output[1:])
    ctx.scale = scale
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy_NF: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x_wants, gate_NK = ctx.needs_input_grad[1], ctx.saved_tensors[3]
    dx_ND, da_ERD, db_EFR, dgate_NK = _fused_backward(dy_NF, *ctx.saved_tensors, ctx.scale, x_wants)
    return (
        dy_NF, dx_ND if x_wants else None, da_ERD, db_EFR, None, None if gate_NK is None else dgate_NK, None
    )  # fmt: skip


_fused_backward = register(
    "fused_lora_backward(Tensor dy, Tensor x, Tensor a, Tensor b, Tensor? gate, Tensor z, Tensor order, Tensor offset, "
    "float scale, bool x_wants) -> (Tensor, Tensor, Tensor, Tensor)",
    run=_run_backward,
    fake=_fake_backward,
)
_fused = register(
    "fused_lora(Tensor base, Tensor x, Tensor a, Tensor b, Tensor index, Tensor? gate, float scale) -> "
    "(Tensor y, Tensor z, Tensor order, Tensor offset)",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
