"""Products with a frozen layer's weight: torch's, or on processors where its library holds back the project's own.

On a CPU torch.mm calls MKL, which on AMD's processors stays well below what they can do. One core of an EPYC (Zen 4, at
most 116 GFLOP/s), 4096 rows, 4096 by 1024, in GFLOP/s by MKL and own (kernels/csrc/product.cpp): x W^T 85, 100; dy W
88, 102. The own kernel also gives the same bits on any number of threads, adds onto what is there, and asks for large
pages (fresh ones cost 27 ms for each 64 MiB). Elsewhere torch's products serve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, has_kernels, launch, says


def frozen_product(x_NI: Tensor, weight_OI: Tensor, *, onto: Tensor | None = None) -> Tensor:
    """Returns x W^T (N, O), or adds it to `onto` (N, O), contiguous, and returns that.

    Like F.linear, but without gradient and whatever autocast says.
    """
    if has_own_product(x_NI):
        return _own(x_NI, weight_OI, onto, weight_OI.shape[0], is_turned=True)
    return _in_torch(x_NI, weight_OI.t(), onto)


def frozen_product_back(dy_NO: Tensor, weight_OI: Tensor, *, onto: Tensor | None = None) -> Tensor:
    """Returns dy W (N, I), the gradient of x, or adds it to `onto` and returns that."""
    if has_own_product(dy_NO):
        return _own(dy_NO, weight_OI, onto, weight_OI.shape[1], is_turned=False)
    return _in_torch(dy_NO, weight_OI, onto)


def has_own_product(rows: Tensor) -> bool:
    """Says whether the own kernel takes a tensor's products: on an AMD processor with AVX-512, float32 or float64."""
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64) or not has_kernels(rows):
        return False
    return says("mmmoe_product_pays", "cpu")


def _own(rows_NK: Tensor, weight: Tensor, onto: Tensor | None, width: int, *, is_turned: bool) -> Tensor:
    rows_NK, weight = rows_NK.contiguous(), weight.contiguous()
    out = rows_NK.new_empty(rows_NK.shape[0], width) if onto is None else onto
    launch(
        "mmmoe_product", rows_NK, weight, out, *out.shape, rows_NK.shape[1], int(is_turned), int(onto is not None),
        TYPE_CODES[rows_NK.dtype], device=rows_NK.device,
    )  # fmt: skip
    return out


def _in_torch(rows_NK: Tensor, weight_KM: Tensor, onto: Tensor | None) -> Tensor:
    with torch.autocast(rows_NK.device.type, enabled=False):
        return torch.mm(rows_NK, weight_KM) if onto is None else onto.addmm_(rows_NK, weight_KM)
