"""dispatch: values and gradient against the literal loop, odd shapes, bad input, compile."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cases import ROUTED, Routed, assert_same, dispatch_case
from host_kernels import fibres, host_library, needs_kernels, needs_toolkit

from mmmoe.kernels import backend
from mmmoe.kernels.combine.op import gather_sum
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.dispatch.reference import dispatch_reference


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("seed", range(2 * len(ROUTED)))
def test_equals_the_loop(seed):
    check, own, reference = dispatch_case(seed)
    assert_same(check(own), check(reference))


@pytest.mark.usefixtures("path")
def test_derivatives_by_finite_differences():
    routing, rng = Routed(6, 3, 4, 2, capacity=2).routing(0)
    x = torch.randn(6, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dispatch(x, routing.order_S, routing.inverse_S), (x,))


@pytest.mark.usefixtures("path")
def test_strides_do_not_matter():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    x = torch.randn(6, 9, generator=rng).t()
    assert torch.equal(dispatch(x, routing.order_S, routing.inverse_S), dispatch_reference(x, routing.order_S))


def test_the_op_keeps_the_rules_of_torch_library():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    x = torch.randn(9, 6, generator=rng, requires_grad=True)
    torch.library.opcheck(torch.ops.mmmoe.dispatch.default, (x, routing.order_S, routing.inverse_S))


def test_compiles_whole_forward_and_backward():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    x = torch.randn(9, 6, generator=rng, requires_grad=True)

    def loss(x):
        return (dispatch(x, routing.order_S, routing.inverse_S) ** 2).sum()

    (want,) = torch.autograd.grad(loss(x), x)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(found, want)


ORDER = torch.tensor([0, 3, 1, 2])
GOOD = {"x_ND": torch.zeros(2, 3), "order_S": ORDER, "inverse_S": ORDER.argsort()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_ND": torch.zeros(3)}, r"x must have two dimensions.*\(3,\)"),
        ({"x_ND": torch.zeros(2, 3, dtype=torch.int32)}, r"x \(2, 3\) are torch.int32 on cpu"),
        ({"x_ND": torch.zeros(3, 3)}, r"order \(4,\) does not give each of 3 tokens"),
        ({"order_S": ORDER.int()}, "order must be one row of int64, got torch.int32"),
        ({"inverse_S": ORDER[:3]}, r"order \(4,\) and inverse \(3,\)"),
        ({"inverse_S": ORDER}, r"order \(4,\) says 3 at 1, the other does not say so back"),
        ({"inverse_S": torch.full((4,), -1)}, r"order \(4,\) says 0 at 0"),
        ({"inverse_S": ORDER + 1}, r"inverse \(4,\) holds 4; -1 to 3 work"),
        ({"order_S": ORDER - 2}, r"order \(4,\) holds -2; -1 to 3 work"),
        ({"x_ND": torch.zeros(2, 3, device="meta")}, r"order \(4,\) is on cpu, x on meta"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        dispatch(**(GOOD | change))


@needs_kernels
@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("way", [nullcontext, lambda: fibres(host_library())], ids=["c++", "cuda"])
def test_rows_beyond_two_to_the_31_elements(way, monkeypatch):
    """More than 2^31 elements and 2^32 bytes; all but the last row are left out, and never touched."""
    width, tokens = 2**20, 2**11 + 8
    x = torch.empty(tokens, width, dtype=torch.float16)
    x[-1, -1] = 3.0
    places = torch.arange(tokens)
    only_last = torch.where(places == tokens - 1, places, -1)
    with way():
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # 4 GB
        assert gather_sum(x, None, places[-1:], 1)[-1, -1] == 3.0
        assert dispatch(x, only_last, only_last)[-1, -1] == 3.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(len(ROUTED)))
def test_a_gpu_computes_what_the_loop_does(seed):
    assert backend.active("cuda").name == "cuda", backend.active("cuda").reason
    shape = ROUTED[seed]
    routing, rng = shape.routing(seed)
    x = torch.randn(shape.n, shape.d, generator=rng).to(shape.dtype)
    found = dispatch(x.cuda(), routing.order_S.cuda(), routing.inverse_S.cuda())
    assert torch.equal(found.cpu(), dispatch_reference(x, routing.order_S))
