"""Products with a frozen layer's weight: torch's, or on processors where its library holds back the project's own.

On a CPU torch.mm calls MKL, which on AMD's processors stays below what they can do. One core of an EPYC (Zen 4, at
most 116 GFLOP/s), 4096 rows, 4096 by 1024, in GFLOP/s by MKL and own (kernels/csrc/product.cpp): x W^T and dy W 96 and
108. The own kernel also gives the same bits on any number of threads, adds onto what is there, takes rows as another
kernel left them for it, and asks for large pages (fresh ones cost 27 ms for each 64 MiB). Elsewhere torch's serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPE_CODES, answer, has_kernels, launch


class Layout(NamedTuple):
    """How rows lie: slices of some of their columns, each slice its rows one after the other."""

    columns: int
    """Of a slice."""
    slice: int
    """Elements from one slice to the next."""
    stride: int
    """Elements from one row of a slice to the next."""


@dataclass(frozen=True)
class Rows:
    """Rows (num, width) as the own kernel reads them."""

    data: Tensor
    num: int
    width: int
    layout: Layout

    def piece(self, begin: int, end: int) -> Rows:
        """Returns some of the columns; they begin where a slice does."""
        data = self.data[begin // self.layout.columns * self.layout.slice :]
        return Rows(data, self.num, end - begin, self.layout)


def room_for_rows(like_NK: Tensor, num: int, width: int) -> Tensor | Rows:
    """Returns room for rows that a kernel of the project writes for products: packed, or a tensor (num, width)."""
    if not has_own_product(like_NK):
        return like_NK.new_empty(num, width)
    found = torch.empty(3, dtype=torch.int64)
    launch("mmmoe_packed_layout", found, num, width, TYPE_CODES[like_NK.dtype], device=like_NK.device)
    layout = Layout(*found.tolist())
    return Rows(like_NK.new_empty(-(-width // layout.columns) * layout.slice), num, width, layout)


def rows_of(plain_NK: Tensor) -> Tensor | Rows:
    """Returns rows for several products: packed now, so that no product has to, or as they are."""
    rows = room_for_rows(plain_NK, *plain_NK.shape)
    if isinstance(rows, Tensor):
        return plain_NK
    code = TYPE_CODES[plain_NK.dtype]
    launch("mmmoe_pack_rows", plain_NK.contiguous(), rows.data, *plain_NK.shape, code, device=plain_NK.device)
    return rows


def frozen_product(
    x_NI: Tensor | Rows, weight_OI: Tensor, *, out: Tensor | None = None, is_added: bool = False
) -> Tensor:
    """Returns x W^T (N, O), in `out` if that is given, which it may be added to.

    Like F.linear, but without gradient and whatever autocast says. Each may be some columns of a wider tensor.

    Raises:
        ValueError: `out` has another shape or type or rows that are not in one run, or there is none to add to.
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
    num, like = (rows.num, rows.data) if isinstance(rows, Rows) else (rows.shape[0], rows)
    shape = (num, weight.shape[0 if is_turned else 1])
    if out is None and is_added:
        raise ValueError("there is no `out` to add to")
    if out is None:
        out = like.new_empty(shape)
    is_in_runs = shape[1] <= 1 or out.stride(1) == 1
    if tuple(out.shape) != shape or out.dtype != like.dtype or not is_in_runs:
        raise ValueError(
            f"out must be {like.dtype} {shape} with each row in one run, "
            f"got {out.dtype} {tuple(out.shape)} with strides {out.stride()}"
        )
    if isinstance(rows, Tensor) and not has_own_product(rows):
        with torch.autocast(rows.device.type, enabled=False):
            right = weight.t() if is_turned else weight
            return out.addmm_(rows, right) if is_added else torch.mm(rows, right, out=out)
    weight = _with_rows_in_one_run(weight)
    if isinstance(rows, Rows):
        data, inner, stride = rows.data, rows.width, rows.layout.stride
    else:
        data = _with_rows_in_one_run(rows)
        inner, stride = data.shape[1], data.stride(0)
    launch(
        "mmmoe_product", data, weight, out, *shape, inner, stride, weight.stride(0), out.stride(0),
        int(isinstance(rows, Rows)), int(is_turned), int(is_added), TYPE_CODES[data.dtype], device=data.device,
    )  # fmt: skip
    return out


def _with_rows_in_one_run(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
