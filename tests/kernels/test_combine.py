"""combine: values and both gradients against the literal loop, odd shapes, precision, bad input, compile."""

from __future__ import annotations

import pytest
import torch
from cases import ROUTED, Routed, assert_same, combine_case, with_gradients

from mmmoe.kernels import backend
from mmmoe.kernels.combine.op import combine, gather_sum
from mmmoe.kernels.combine.reference import combine_reference
from mmmoe.kernels.dispatch.op import dispatch


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("seed", range(2 * len(ROUTED)))
def test_equals_the_loop(seed):
    check, own, reference = combine_case(seed)
    assert_same(check(own), check(reference))


@pytest.mark.usefixtures("path")
def test_derivatives_by_finite_differences():
    routing, rng = Routed(6, 3, 4, 2, capacity=2).routing(0)
    rows = torch.randn(12, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(6, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, g: combine(r, g, routing.order_S, routing.inverse_S), (rows, gate))


@pytest.mark.usefixtures("path")
def test_identity_experts_give_back_what_was_dispatched():
    routing, rng = Routed(50, 12, 6, 3).routing(3)
    x = torch.randn(50, 12, generator=rng)
    rows = dispatch(x, routing.order_S, routing.inverse_S)
    y = combine(rows, routing.gate_NK, routing.order_S, routing.inverse_S)
    torch.testing.assert_close(y, x * routing.gate_NK.sum(1, keepdim=True))


@pytest.mark.usefixtures("path")
def test_strides_and_expanded_gradients_do_not_matter():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    rows = torch.randn(6, 18, generator=rng).t()
    gate = torch.rand(2, 9, generator=rng).t()
    leaves = [rows.requires_grad_(), gate.requires_grad_()]
    y = combine(rows, gate, routing.order_S, routing.inverse_S)
    want = combine_reference(rows, gate, routing.inverse_S)
    torch.testing.assert_close(y, want)
    assert_same(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(want.sum(), leaves))


@pytest.mark.usefixtures("path")
def test_eight_rows_are_summed_in_float32():
    """256 + seven times 1 is 263 in float32; bfloat16 would stay at 256 at every step."""
    routing, _ = Routed(1, 1, 8, 8).routing(0)
    rows = torch.ones(8, 8, dtype=torch.bfloat16)
    rows[routing.inverse_S[0]] = 256.0
    y = combine(rows, torch.ones(1, 8), routing.order_S, routing.inverse_S)
    assert (y == torch.tensor(263.0).bfloat16()).all()


def test_the_same_call_gives_the_same_bits(threads):
    shape = Routed(300, 64, 8, 4)
    routing, rng = shape.routing(0)
    rows = torch.randn(1200, 64, generator=rng)
    run = lambda: with_gradients(  # noqa: E731
        lambda r, g: combine(r, g, routing.order_S, routing.inverse_S), [rows, routing.gate_NK]
    )
    first = run()
    threads(1)
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_the_op_keeps_the_rules_of_torch_library():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    rows = torch.randn(18, 6, generator=rng, requires_grad=True)
    gate = torch.rand(9, 2, generator=rng, requires_grad=True)
    torch.library.opcheck(torch.ops.mmmoe.combine.default, (rows, gate, routing.order_S, routing.inverse_S))


def test_compiles_whole_forward_and_backward():
    routing, rng = Routed(9, 6, 4, 2).routing(0)
    leaves = [torch.randn(18, 6, generator=rng), torch.rand(9, 2, generator=rng)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def loss(rows, gate):
        return (combine(rows, gate, routing.order_S, routing.inverse_S) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves))


ORDER = torch.tensor([0, 3, 1, 2])
GOOD = {"rows_SD": torch.zeros(4, 3), "gate_NK": torch.zeros(2, 2), "order_S": ORDER, "inverse_S": ORDER.argsort()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows_SD": torch.zeros(4)}, r"rows must have two dimensions.*\(4,\)"),
        ({"rows_SD": torch.zeros(4, 3, dtype=torch.int8)}, r"rows \(4, 3\) are torch.int8 on cpu"),
        ({"rows_SD": torch.zeros(5, 3)}, r"rows \(5, 3\) must have one row for each of 4 places"),
        ({"gate_NK": torch.zeros(4)}, r"gate must be \(tokens, chosen\) numbers.*\(4,\)"),
        ({"gate_NK": torch.zeros(2, 3)}, r"gate \(2, 3\) does not fit order \(4,\)"),
        ({"gate_NK": torch.zeros(2, 2, device="meta")}, r"gate \(2, 2\) is on meta, rows on cpu"),
        ({"order_S": ORDER - 9}, r"order \(4,\) holds -9"),
        ({"inverse_S": ORDER}, r"order \(4,\) says 3 at 1"),
        ({"inverse_S": ORDER + 1}, r"inverse \(4,\) holds 4; -1 to 3 work"),
        ({"inverse_S": ORDER.float()}, "inverse must be one row of int64, got torch.float32"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        combine(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inverse_S": ORDER.int()}, "order must be one row of int64, got torch.int32"),
        ({"num_tokens": 3}, "does not give each of 3 tokens"),
        ({"inverse_S": torch.tensor([0, 1, 2, 4])}, r"inverse \(4,\) holds 4; -1 to 3 work"),
        ({"gate_NK": torch.zeros(4, 2)}, r"gate \(4, 2\) must be \(2, 2\)"),
    ],
)
def test_bad_input_of_gather_sum_is_named(change, words):
    good = {"rows_SD": torch.zeros(4, 3), "gate_NK": None, "inverse_S": ORDER, "num_tokens": 2}
    with pytest.raises(ValueError, match=words):
        gather_sum(**(good | change))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(len(ROUTED)))
def test_a_gpu_computes_what_the_loop_does(seed):
    assert backend.active("cuda").name == "cuda", backend.active("cuda").reason
    shape = ROUTED[seed]
    routing, rng = shape.routing(seed)
    rows = torch.randn(shape.n * shape.k, shape.d, generator=rng).to(shape.dtype)
    want = with_gradients(lambda r, g: combine_reference(r, g, routing.inverse_S), [rows, routing.gate_NK])
    order, inverse = routing.order_S.cuda(), routing.inverse_S.cuda()
    found = with_gradients(lambda r, g: combine(r, g, order, inverse), [rows.cuda(), routing.gate_NK.cuda()])
    assert_same(found, want)
