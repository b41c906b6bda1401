"""grouped_lora: values and every gradient against the literal loop, at odd shapes."""

from __future__ import annotations

import pytest
import torch

from mmmoe.kernels.grouped_lora.op import group_by_expert, grouped_lora, sorted_lora
from mmmoe.kernels.grouped_lora.reference import grouped_lora_reference

# N tokens, D in, F out, E experts, R rank, K chosen
SHAPES = [
    (7, 5, 6, 3, 2, 1),
    (1, 4, 4, 3, 1, 1),
    (0, 4, 5, 3, 2, 1),
    (13, 8, 3, 1, 4, 1),
    (16, 6, 9, 4, 3, 2),
    (9, 5, 5, 3, 2, 3),
]


def draw(shape, *, gated=False, dtype=torch.float64, seed=0):
    n, d, f, e, r, k = shape
    rng = torch.Generator().manual_seed(seed)
    base, x = torch.randn(n, f, generator=rng, dtype=dtype), torch.randn(n, d, generator=rng, dtype=dtype)
    a, b = torch.randn(e, r, d, generator=rng, dtype=dtype), torch.randn(e, f, r, generator=rng, dtype=dtype)
    index = torch.rand(n, e, generator=rng).argsort(1)[:, :k]
    gate = torch.rand(n, k, generator=rng, dtype=dtype) if gated else None
    leaves = [t if t is None else t.requires_grad_() for t in (base, x, a, b, gate)]
    return leaves, index


def run(function, leaves, index, **options):
    base, x, a, b, gate = leaves
    leaves = [t for t in leaves if t is not None]
    y = function(base, x, a, b, index, gate, scale=1.7, **options)
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return y.detach(), torch.autograd.grad((y * cotangent).sum(), leaves)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("strategy", ["auto", "masked", "sorted"])
def test_values_and_gradients_equal_the_loop(shape, gated, strategy):
    leaves, index = draw(shape, gated=gated)
    y, gradients = run(grouped_lora, leaves, index, strategy=strategy)
    if shape[0] == 0:
        assert y.shape == (0, shape[2])
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)
        return
    want_y, want = run(grouped_lora_reference, leaves, index)
    torch.testing.assert_close(y, want_y)
    for gradient, expected in zip(gradients, want, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("strategy", ["masked", "sorted"])
def test_expert_without_tokens_gets_a_gradient_of_zeros(strategy):
    leaves, _ = draw((6, 4, 5, 3, 2, 1))
    index = torch.tensor([[0], [2], [0], [2], [2], [0]])
    _, (_, _, da, db) = run(grouped_lora, leaves, index, strategy=strategy)
    assert da[1].abs().sum() == 0
    assert db[1].abs().sum() == 0
    assert da[0].abs().sum() > 0


@pytest.mark.parametrize("strategy", ["masked", "sorted"])
def test_inputs_that_are_views_and_a_base_that_is_left_alone(strategy):
    leaves, index = draw((8, 6, 5, 3, 2, 1))
    base, x, a, b, _ = (t if t is None else t.detach() for t in leaves)
    wide = torch.randn(6, 8, dtype=torch.float64).t().contiguous()
    wide.copy_(x)
    strided_x, strided_b = wide.t().contiguous().t(), b.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert not strided_x.is_contiguous()
    before = base.clone()
    y = grouped_lora(base, strided_x, a, strided_b, index, scale=1.7, strategy=strategy)
    torch.testing.assert_close(y, grouped_lora_reference(base, x, a, b, index, scale=1.7))
    assert torch.equal(base, before)


@pytest.mark.parametrize("strategy", ["masked", "sorted"])
def test_derivatives_by_finite_differences(strategy):
    leaves, index = draw((5, 3, 4, 3, 2, 1), gated=True)
    assert torch.autograd.gradcheck(
        lambda base, x, a, b, gate: grouped_lora(base, x, a, b, index, gate, scale=0.5, strategy=strategy), leaves
    )


def test_half_precision_is_as_good_as_the_reference_in_half_precision():
    leaves, index = draw((32, 24, 40, 4, 8, 1))
    base, x, a, b, _ = (t if t is None else t.detach() for t in leaves)
    exact = grouped_lora_reference(base, x, a, b, index, scale=0.5)
    low = [t.bfloat16() for t in (base, x, a, b)]
    allowed = (grouped_lora_reference(*low, index, scale=0.5).double() - exact).abs().max()
    for strategy in ("masked", "sorted"):
        error = (grouped_lora(*low, index, scale=0.5, strategy=strategy).double() - exact).abs().max()
        assert error <= 2 * allowed


def test_groups_are_stable_and_inverse_undoes_them():
    index = torch.tensor([[2], [0], [2], [0], [1]])
    groups = group_by_expert(index, 4)
    assert groups.order_S.tolist() == [1, 3, 4, 0, 2]
    assert groups.counts == [2, 1, 2, 0]
    assert torch.equal(groups.order_S[groups.inverse_S], torch.arange(5))


def test_grouped_rows_without_moving_them():
    leaves, index = draw((11, 5, 6, 3, 2, 1), gated=True)
    base, x, a, b, gate = leaves
    order = group_by_expert(index, 3)
    y = sorted_lora(base[order.order_S], x[order.order_S], a, b, order.counts, gate[order.order_S, 0], scale=1.7)
    torch.testing.assert_close(y[order.inverse_S], grouped_lora_reference(base, x, a, b, index, gate, scale=1.7))


def test_shapes_that_do_not_fit_are_refused():
    leaves, index = draw((4, 5, 6, 3, 2, 1))
    base, x, a, b, _ = leaves
    with pytest.raises(AssertionError, match="does not fit"):
        grouped_lora(base, x, a, b.transpose(1, 2), index, scale=1.0)
    with pytest.raises(AssertionError, match="one type"):
        grouped_lora(base, x.float(), a, b, index, scale=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[3:], ids=str)
@pytest.mark.parametrize("strategy", ["masked", "sorted"])
def test_a_gpu_computes_what_the_processor_does(shape, strategy):
    leaves, index = draw(shape, gated=True)
    y, gradients = run(grouped_lora, leaves, index, strategy=strategy)
    moved = [leaf.detach().cuda().requires_grad_() for leaf in leaves]
    base, x, a, b, gate = moved
    y_there = grouped_lora(base, x, a, b, index.cuda(), gate, scale=1.7, strategy=strategy)
    torch.testing.assert_close(y_there.detach().cpu(), y)
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).cuda()
    for gradient, expected in zip(torch.autograd.grad((y_there * cotangent).sum(), moved), gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), expected)
