"""Products with frozen weights: every way against torch's in double precision, adding, rest shapes, threads."""

from __future__ import annotations

import pytest
import torch
from host_kernels import needs_kernels

from mmmoe.kernels import products
from mmmoe.kernels.backend import active, is_compiled
from mmmoe.kernels.products import frozen_product, frozen_product_back, rows_of

SHAPES = [(0, 3, 4), (1, 1, 1), (13, 33, 70), (25, 400, 1100), (12, 32, 512)]


def draw(shape, dtype=torch.float32):
    rows, out, inner = shape
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=rng).to(dtype) for size in ((rows, inner), (out, inner), (rows, out))]


@pytest.fixture(params=["own", "torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(products, "has_own_product", lambda rows: request.param == "own")
    if request.param == "own" and not is_compiled("cpu"):
        pytest.skip(f"no kernels for the CPU: {active('cpu').reason}")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_those_in_double_precision(shape, dtype):
    x, w, dy = draw(shape, dtype)
    forward, back = x.double() @ w.double().T, dy.double() @ w.double()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for found, want in (
        (frozen_product(x, w), forward),
        (frozen_product_back(dy, w), back),
        (frozen_product(x, w, out=dy.clone(), is_added=True), forward + dy),
        (frozen_product_back(dy, w, out=x.clone(), is_added=True), back + x),
        (frozen_product(x.T.contiguous().T, w.T.contiguous().T), forward),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want.double(), **tolerance)


@pytest.mark.usefixtures("way")
def test_adding_returns_the_same_tensor():
    x, w, dy = draw((5, 7, 9))
    assert frozen_product(x, w, out=dy, is_added=True) is dy


@needs_kernels
@pytest.mark.parametrize("way", ["own"], indirect=True)
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_for_several_products_give_the_same_bits(shape):
    x, w, dy = draw(shape)
    assert torch.equal(frozen_product(rows_of(x), w), frozen_product(x, w))
    assert torch.equal(frozen_product_back(rows_of(dy.T.contiguous().T), w), frozen_product_back(dy, w))


@pytest.mark.usefixtures("way")
def test_some_columns_of_everything_and_the_rest_stays():
    x, w, dy = draw((25, 400, 1100))
    wide = torch.full((25, 60), 7.0)
    found = frozen_product(x[:, 3:1003], w[50:90, 3:1003], out=wide[:, 11:51])
    assert found.data_ptr() == wide[:, 11:].data_ptr()
    torch.testing.assert_close(wide[:, 11:51], x[:, 3:1003] @ w[50:90, 3:1003].T, rtol=1e-4, atol=1e-4)
    frozen_product_back(dy[:, 50:90], w[50:90, 7:47], out=wide[:, 11:51], is_added=True)
    want = x[:, 3:1003] @ w[50:90, 3:1003].T + dy[:, 50:90] @ w[50:90, 7:47]
    torch.testing.assert_close(wide[:, 11:51], want, rtol=1e-4, atol=1e-4)
    assert (wide[:, :11] == 7).all()
    assert (wide[:, 51:] == 7).all()


@pytest.mark.usefixtures("way")
def test_an_out_that_does_not_fit_is_refused():
    x, w, _ = draw((5, 7, 9))
    for out in (torch.empty(5, 9), torch.empty(6, 7), torch.empty(5, 7, dtype=torch.float64), torch.empty(7, 5).T):
        with pytest.raises(ValueError, match=r"out must be torch.float32 \(5, 7\)"):
            frozen_product(x, w, out=out)
    with pytest.raises(ValueError, match="no `out`"):
        frozen_product(x, w, is_added=True)


@pytest.mark.usefixtures("way")
def test_autocast_changes_nothing():
    x, w, _ = draw((5, 7, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen_product(x, w).dtype == torch.float32


@needs_kernels
@pytest.mark.parametrize("way", ["own"], indirect=True)
@pytest.mark.usefixtures("way")
def test_a_row_has_the_same_bits_with_any_threads_and_any_other_rows(threads):
    x, w, dy = draw((61, 400, 1100))
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append((frozen_product(x, w), frozen_product_back(dy, w)))
    for pair in found[1:]:
        assert all(map(torch.equal, pair, found[0]))
    assert torch.equal(frozen_product(x[17:18], w), found[0][0][17:18])


@needs_kernels
@pytest.mark.parametrize("way", ["own"], indirect=True)
@pytest.mark.usefixtures("way")
def test_adding_to_zeros_gives_the_bits_of_the_product():
    x, w, _ = draw((61, 400, 1100))
    assert torch.equal(frozen_product(x, w, out=torch.zeros(61, 400), is_added=True), frozen_product(x, w))
