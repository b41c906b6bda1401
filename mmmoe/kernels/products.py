"""Products with a frozen layer's weight, by the fastest way there is for a device and type.

On a CPU torch.mm calls MKL, which holds back on processors that are not Intel's. oneDNN, which torch keeps behind a
private op, is faster, and the project's own kernel (kernels/csrc/product.cpp) at least as fast; it also gives the same
bits on any number of threads and can ask for large pages. One core of an AMD EPYC (Zen 4, at most 116 GFLOP/s), 4096
rows, 4096 by 1024, in GFLOP/s by MKL, oneDNN and own: x W^T 85, 97, 100; dy W 88, 100, 102.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, compiled, has_kernels, launch

LINEAR = "_linear_pointwise"
"""oneDNN's x W^T in torch.ops.mkldnn; private, so it is asked for each time. The same from torch 2.11 to 2.14."""


def frozen_product(x_NI: Tensor, weight_OI: Tensor, *, onto: Tensor | None = None) -> Tensor:
    """Returns x W^T (N, O), or adds it to `onto` (N, O), contiguous, and returns that.

    Like F.linear, but without gradient and whatever autocast says.
    """
    if has_own_product(x_NI):
        return _own(x_NI, weight_OI, onto, weight_OI.shape[0], is_turned=True)
    return _in_torch(x_NI, weight_OI, onto)


def frozen_product_back(dy_NO: Tensor, weight_OI: Tensor, *, onto: Tensor | None = None) -> Tensor:
    """Returns dy W (N, I), the gradient of x, or adds it to `onto` and returns that."""
    if has_own_product(dy_NO):
        return _own(dy_NO, weight_OI, onto, weight_OI.shape[1], is_turned=False)
    return _in_torch(dy_NO, weight_OI.t(), onto)


def has_own_product(rows: Tensor) -> bool:
    """Says whether there is a compiled kernel for products on a tensor's device, in its type."""
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64) or not has_kernels(rows):
        return False
    return hasattr(compiled("cpu"), "mmmoe_product")


def has_onednn(rows: Tensor) -> bool:
    """Says whether oneDNN takes a tensor's products."""
    is_fit = rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.numel() > 0
    return is_fit and bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, LINEAR)


def _own(rows_NK: Tensor, weight: Tensor, onto: Tensor | None, width: int, *, is_turned: bool) -> Tensor:
    rows_NK, weight = rows_NK.contiguous(), weight.contiguous()
    out = rows_NK.new_empty(rows_NK.shape[0], width) if onto is None else onto
    launch(
        "mmmoe_product", rows_NK, weight, out, *out.shape, rows_NK.shape[1], int(is_turned), int(onto is not None),
        TYPE_CODES[rows_NK.dtype], device=rows_NK.device,
    )  # fmt: skip
    return out


def _in_torch(x_NI: Tensor, weight_OI: Tensor, onto: Tensor | None) -> Tensor:
    with torch.autocast(x_NI.device.type, enabled=False):
        if has_onednn(x_NI):
            y_NO: Tensor = getattr(torch.ops.mkldnn, LINEAR)(x_NI, weight_OI, None, "none", [], "")
            return y_NO if onto is None else onto.add_(y_NO)
        return torch.mm(x_NI, weight_OI.t()) if onto is None else onto.addmm_(x_NI, weight_OI.t())
