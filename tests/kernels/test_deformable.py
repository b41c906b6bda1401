"""deformable_attention: values and gradients against the literal loop, places off the maps, half types, bad input."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import assert_same, with_gradients

from mmmoe.kernels.deformable import op
from mmmoe.kernels.deformable.op import deformable_attention
from mmmoe.kernels.deformable.reference import deformable_attention_reference


@dataclass(frozen=True)
class Shape:
    """A batch of queries with heads of some channels, and points on each of some maps; how far off points may lie."""

    batch: int
    queries: int
    heads: int
    channels: int
    points: int
    sides: tuple[tuple[int, int], ...]
    spread: float = 1.3

    def draw(self, seed, dtype=torch.float32):
        rng = torch.Generator().manual_seed(seed)
        per_query = (self.batch, self.queries, self.heads, len(self.sides), self.points)
        value = torch.randn(
            self.batch, sum(r * c for r, c in self.sides), self.heads, self.channels, generator=rng, dtype=torch.float64
        )
        location = 0.5 + self.spread * (torch.rand(*per_query, 2, generator=rng, dtype=torch.float64) - 0.5)
        weight = torch.randn(per_query, generator=rng, dtype=torch.float64)
        return value.to(dtype), location.to(dtype), weight.to(dtype)


SHAPES = [
    Shape(2, 5, 3, 4, 3, ((5, 3), (2, 4), (1, 1))),
    Shape(1, 1, 1, 1, 1, ((1, 1),)),
    Shape(1, 7, 2, 5, 1, ((3, 3),)),  # one point on one map
    Shape(2, 3, 2, 33, 4, ((1, 6), (6, 1)), spread=1.0),
    Shape(1, 4, 2, 8, 2, ((4, 4), (2, 2)), spread=6.0),  # most points outside
    Shape(3, 2, 16, 1, 8, ((4, 4), (2, 2))),
]


@pytest.fixture(autouse=True, params=["bags", "maps"])
def way(request, monkeypatch):
    """How points are read, whatever the number of channels says."""
    monkeypatch.setattr(op, "FEW_CHANNELS", 0 if request.param == "bags" else 2**31)
    return request.param


@pytest.mark.parametrize("seed", range(2 * len(SHAPES)))
def test_equals_the_loop(seed):
    shape = SHAPES[seed % len(SHAPES)]
    leaves = shape.draw(seed, torch.float64 if seed % 2 else torch.float32)
    found = with_gradients(lambda v, a, w: deformable_attention(v, shape.sides, a, w), leaves)
    want = with_gradients(lambda v, a, w: deformable_attention_reference(v, shape.sides, a, w), leaves)
    assert found[0].shape == (shape.batch, shape.queries, shape.heads * shape.channels)
    assert_same(found, want)


def test_derivatives_by_finite_differences():
    shape = SHAPES[0]
    leaves = [leaf.requires_grad_() for leaf in shape.draw(3, torch.float64)]
    assert torch.autograd.gradcheck(lambda v, a, w: deformable_attention(v, shape.sides, a, w), leaves)


@pytest.mark.parametrize("asked", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(asked):
    shape = SHAPES[0]
    leaves = shape.draw(5)
    whole = with_gradients(lambda v, a, w: deformable_attention(v, shape.sides, a, w), leaves)
    leaves = [leaf.detach().requires_grad_(wanted) for leaf, wanted in zip(leaves, asked, strict=True)]
    y = deformable_attention(leaves[0], shape.sides, leaves[1], leaves[2])
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y.double() * cotangent).sum().backward()
    for leaf, gradient, wanted in zip(leaves, whole[1:], asked, strict=True):
        assert (leaf.grad is not None) == wanted
        assert not wanted or torch.allclose(leaf.grad, gradient, rtol=1e-5, atol=1e-6)


def test_points_far_away_read_nothing_and_numbers_that_are_none_do_not_reach_other_queries():
    shape = Shape(1, 6, 1, 3, 1, ((4, 4),))
    value, location, weight = shape.draw(0)
    location[0, 0], location[0, 1], location[0, 2] = 1e30, -1e30, float("inf")
    location[0, 3] = float("nan")
    y = deformable_attention(value, shape.sides, location, weight)
    assert torch.equal(y[0, :2], torch.zeros(2, 3))
    assert torch.equal(y[:, 4:], deformable_attention(value, shape.sides, location[:, 4:], weight[:, 4:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_err_no_more_than_the_loop_in_them(dtype):
    shape = Shape(2, 9, 2, 16, 4, ((8, 8), (4, 4)))
    exact = shape.draw(0, torch.float64)
    halves = [leaf.to(dtype) for leaf in exact]

    def gradients(function, leaves):
        return with_gradients(lambda v, a, w: function(v, shape.sides, a, w), leaves)

    rounded = [half.double() for half in halves]
    want = gradients(deformable_attention_reference, rounded)
    loop = gradients(deformable_attention_reference, halves)
    found = gradients(deformable_attention, halves)
    for name, own, other, truth in zip(("y", "value", "location", "weight"), found, loop, want, strict=True):
        assert own.dtype == dtype
        error, allowed = (own - truth).abs().max(), (other - truth).abs().max()
        assert error <= allowed + torch.finfo(dtype).eps * truth.abs().max(), name


def test_locations_keep_their_precision_beside_half_values():
    """A bfloat16 location on a map of side 128 is off by up to a quarter of a cell."""
    shape = Shape(1, 50, 1, 4, 2, ((128, 128),), spread=1.0)
    value, location, weight = shape.draw(0)
    value = value.bfloat16()
    found = deformable_attention(value, shape.sides, location, weight)
    assert found.dtype == torch.bfloat16
    want = deformable_attention_reference(value.double(), shape.sides, location.double(), weight.double())
    assert (found - want).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * want.abs().max()


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_do(batch, queries):
    shape = Shape(batch, queries, 2, 3, 2, ((2, 2),))
    leaves = shape.draw(0)
    y, *gradients = with_gradients(lambda v, a, w: deformable_attention(v, shape.sides, a, w), leaves)
    assert y.shape == (batch, queries, 6)
    assert all(torch.equal(gradient, torch.zeros_like(leaf)) for gradient, leaf in zip(gradients, leaves, strict=True))


def test_strides_do_not_matter():
    shape = SHAPES[0]
    value, location, weight = shape.draw(2)
    found = deformable_attention(
        value.transpose(1, 2).contiguous().transpose(1, 2),
        shape.sides,
        location.flip(0).contiguous().flip(0).transpose(2, 3).contiguous().transpose(2, 3),
        weight.movedim(1, -1).contiguous().movedim(-1, 1),
    )
    assert torch.equal(found, deformable_attention(value, shape.sides, location, weight))


def test_a_batch_equals_its_rows_one_by_one():
    shape = Shape(3, 5, 2, 4, 3, ((5, 3), (2, 4)))
    value, location, weight = shape.draw(1)
    whole = deformable_attention(value, shape.sides, location, weight)
    rows = [
        deformable_attention(v[None], shape.sides, a[None], w[None])
        for v, a, w in zip(value, location, weight, strict=True)
    ]
    assert torch.equal(whole, torch.cat(rows))


def test_the_op_keeps_the_rules_of_torch_library():
    rows, columns = zip(*SHAPES[0].sides, strict=True)
    value, location, weight = (leaf.requires_grad_() for leaf in SHAPES[0].draw(0))
    arguments = (value, list(rows), list(columns), location, weight)
    torch.library.opcheck(torch.ops.mmmoe.deformable_attention.default, arguments)


def test_compiles_whole_forward_and_backward():
    shape = SHAPES[0]
    leaves = [leaf.requires_grad_() for leaf in shape.draw(0)]

    def loss(value, location, weight):
        return (deformable_attention(value, shape.sides, location, weight) ** 2).sum()

    want = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": torch.zeros(1, 4, 6)}, r"value must be \(batch, cells, heads, channels\), got \(1, 4, 6\)"),
        ({"value": torch.zeros(1, 5, 2, 3)}, r"value \(1, 5, 2, 3\) has 5 cells, the maps 2 x 2 have 4"),
        ({"value": torch.zeros(1, 4, 2, 3).long()}, r"value \(1, 4, 2, 3\) is torch.int64"),
        ({"location": torch.zeros(1, 7, 2, 1, 3)}, r"location must be \(1, queries, 2, 1, points, 2\)"),
        ({"location": torch.zeros(1, 7, 3, 1, 3, 2)}, r"location must be \(1, queries, 2, 1, points, 2\)"),
        ({"weight": torch.zeros(1, 7, 2, 1, 2)}, r"weight must be \(1, 7, 2, 1, 3\), got \(1, 7, 2, 1, 2\)"),
        ({"weight": torch.zeros(1, 7, 2, 1, 3, device="meta")}, "weight is on meta, value on cpu"),
        ({"sides": ()}, "at least one map"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {
        "value": torch.zeros(1, 4, 2, 3),
        "sides": ((2, 2),),
        "location": torch.zeros(1, 7, 2, 1, 3, 2),
        "weight": torch.zeros(1, 7, 2, 1, 3),
    } | change
    with pytest.raises(ValueError, match=words):
        deformable_attention(given["value"], given["sides"], given["location"], given["weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", range(len(SHAPES)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_what_the_loop_does(seed, dtype):
    shape = SHAPES[seed]
    value, location, weight = shape.draw(seed)
    value = value.to(dtype)
    found = with_gradients(
        lambda v, a, w: deformable_attention(v.cuda(), shape.sides, a.cuda(), w.cuda()), (value, location, weight)
    )
    want = with_gradients(
        lambda v, a, w: deformable_attention_reference(v.float(), shape.sides, a, w).to(dtype),
        (value, location, weight),
    )
    assert_same(found, want)
