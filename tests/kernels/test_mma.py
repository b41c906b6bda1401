"""Tiles of kernels/csrc/mma.h on the CPU: one layout for what is read, multiplied, turned and written."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch
from host_kernels import needs_toolkit

from mmmoe.kernels import backend
from mmmoe.kernels.build import build, source_folder

KERNEL = """
#include "mma.h"
namespace {
template <class T, bool kQuads>
__global__ void products(const T *a, const T *b, float *product, T *turned, int rows, int columns) {
  const auto load = [&](const T *m) {
    const auto row_of = [&](int row, int) { return m + row * columns; };
    return load_tile<T, kQuads, Beyond::zeros>(0, row_of, [&](int i) { return tile_row(i) < rows ? columns : 0; });
  };
  Tile<float> total;
  multiply(total, load(a), load(b));
  const Tile<float> back = as_type<float>(transposed(load(a)));
  for (int i = 0; i < 2; i++) {
    store_four<true>(product + tile_row(i) * kSide, kSide, tile_column(), total.row(i));
    store_four<true>(turned + tile_row(i) * kSide, kSide, tile_column(), back.row(i));
  }
}
}
EXPORT int products_of(const void *a, const void *b, float *product, void *turned, int64_t rows, int64_t columns,
                       int64_t type, void *) {
  return by_type(type, [&](auto element) {
    using T = decltype(element);
    const auto kernel = columns % 4 ? products<T, false> : products<T, true>;
    LAUNCH(kernel, 1, 32, 0, nullptr, static_cast<const T *>(a), static_cast<const T *>(b), product,
           static_cast<T *>(turned), rows, columns);
    return 0;
  });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mma")
    for name in ("mma.h", "common.h", "host.h"):
        shutil.copy(source_folder() / name, folder)
    (folder / "products.cu").write_text(KERNEL)
    return ctypes.CDLL(build("host", folder).as_posix())


@needs_toolkit
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 12), (9, 7), (1, 1)])
@pytest.mark.parametrize("dtype", backend.KERNEL_TYPES["cuda"], ids=str)
def test_products_and_transposes_equal_torch(library, dtype, rows, columns):
    a, b = (torch.randn(16, columns, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    a[rows:], b[rows:] = 7.0, 7.0  # are not there for the kernel
    product, turned = torch.empty(16, 16), torch.empty(16, 16, dtype=dtype)
    backend.call(library, "products_of", a, b, product, turned, rows, columns, backend.TYPE_CODES[dtype])
    want_product, want_turned = torch.zeros(16, 16), torch.zeros(16, 16, dtype=dtype)
    want_product[:rows, :rows] = a[:rows].float() @ b[:rows].float().T
    want_turned[:columns, :rows] = a[:rows].T
    torch.testing.assert_close(product, want_product)
    assert torch.equal(turned, want_turned)
