"""Products with a frozen layer's weight: torch's, or on processors where its library holds back the project's own.

On a CPU torch.mm calls MKL, which on AMD's processors stays below what they can do. One core of an EPYC (Zen 4, at
most 116 GFLOP/s), 4096 rows, 4096 by 1024, in GFLOP/s by MKL and own (kernels/csrc/product.cpp): x W^T 96, 108; dy W
96, 108. The own kernel also gives the same bits on any number of threads, adds onto what is there, takes rows that were
packed once for several products, and asks for large pages (fresh ones cost 27 ms for each 64 MiB). Elsewhere torch's
products serve.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, answer, has_kernels, launch, workspace_size


class Rows(NamedTuple):
    """Rows that go through several products."""

    plain_NK: Tensor
    packed: Tensor | None
    """The same as the own kernel reads them, if it serves."""


def rows_of(plain_NK: Tensor) -> Rows:
    """Returns rows for several products; packed now, so that no product has to."""
    if not has_own_product(plain_NK):
        return Rows(plain_NK, None)
    code = TYPE_CODES[plain_NK.dtype]
    plain_NK = plain_NK.contiguous()
    packed = plain_NK.new_empty(workspace_size("mmmoe_packed_size", *plain_NK.shape, code, device=plain_NK.device))
    launch("mmmoe_pack_rows", plain_NK, packed, *plain_NK.shape, code, device=plain_NK.device)
    return Rows(plain_NK, packed)


def frozen_product(
    x_NI: Tensor | Rows, weight_OI: Tensor, *, out: Tensor | None = None, is_added: bool = False
) -> Tensor:
    """Returns x W^T (N, O), in `out` if that is given, which it may be added to.

    Like F.linear, but without gradient and whatever autocast says. Each may be some columns of a wider tensor.
    """
    return _product(x_NI, weight_OI, out, is_added=is_added, is_turned=True)


def frozen_product_back(
    dy_NO: Tensor | Rows, weight_OI: Tensor, *, out: Tensor | None = None, is_added: bool = False
) -> Tensor:
    """Returns dy W (N, I), the gradient of x, in `out` if that is given, which it may be added to."""
    return _product(dy_NO, weight_OI, out, is_added=is_added, is_turned=False)


def has_own_product(rows: Tensor) -> bool:
    """Says whether the own kernel takes a tensor's products: on an AMD processor with AVX-512, float32 or float64."""
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64) or not has_kernels(rows):
        return False
    return answer("mmmoe_product_pays", "cpu") != 0


def _product(rows: Tensor | Rows, weight: Tensor, out: Tensor | None, *, is_added: bool, is_turned: bool) -> Tensor:
    plain_NK, packed = rows if isinstance(rows, Rows) else (rows, None)
    if packed is None and not has_own_product(plain_NK):
        with torch.autocast(plain_NK.device.type, enabled=False):
            right = weight.t() if is_turned else weight
            return out.addmm_(plain_NK, right) if is_added and out is not None else torch.mm(plain_NK, right, out=out)
    weight, plain_NK = (t if t.stride(1) == 1 else t.contiguous() for t in (weight, plain_NK))
    left = plain_NK if packed is None else packed
    if out is None:
        out = plain_NK.new_empty(plain_NK.shape[0], weight.shape[0 if is_turned else 1])
    launch(
        "mmmoe_product", left, weight, out, *out.shape, plain_NK.shape[1], plain_NK.stride(0), weight.stride(0),
        out.stride(0), int(packed is not None), int(is_turned), int(is_added), TYPE_CODES[left.dtype],
        device=left.device,
    )  # fmt: skip
    return out
