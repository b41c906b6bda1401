"""grouped_lora: values and every gradient against the literal loop, at odd shapes."""

from __future__ import annotations

import pytest
import torch
from cases import LORA, assert_same, lora_case
from host_kernels import needs_kernels

from mmmoe.kernels import backend
from mmmoe.kernels.grouped_lora.cost import Sizes, cheapest, costs
from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.kernels.grouped_lora.reference import grouped_lora_reference

STRATEGIES = ["masked", "permuted", pytest.param("fused", marks=needs_kernels)]
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
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
    return y.detach(), torch.autograd.grad((y * cotangent).sum(), leaves)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_expert_without_tokens_gets_a_gradient_of_zeros(strategy):
    leaves, _ = draw((6, 4, 5, 3, 2, 1))
    index = torch.tensor([[0], [2], [0], [2], [2], [0]])
    _, (_, _, da, db) = run(grouped_lora, leaves, index, strategy=strategy)
    assert da[1].abs().sum() == 0
    assert db[1].abs().sum() == 0
    assert da[0].abs().sum() > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
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


@pytest.mark.parametrize("strategy", STRATEGIES)
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
    for strategy in ("masked", "permuted"):
        error = (grouped_lora(*low, index, scale=0.5, strategy=strategy).double() - exact).abs().max()
        assert error <= 2 * allowed


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(2 * len(LORA)))
def test_odd_shapes_and_skew_in_single_precision(seed, strategy):
    check, own, reference = lora_case(seed, strategy, dtype=torch.float32)
    assert_same(check(own), check(reference))


@needs_kernels
@pytest.mark.parametrize("rank", [4, 6, 16, 24, 128])
def test_the_fused_kernels_over_many_tiles(rank):
    """More tokens than a tile, more columns than a span, ranks that are no multiple of a vector."""
    rng = torch.Generator().manual_seed(rank)
    n, d, f, e, k = 700, 300, 517, 5, 2
    leaves = [torch.randn(s, generator=rng) * 0.1 for s in ((n, f), (n, d), (e, rank, d), (e, f, rank), (n, k))]
    index = torch.rand(n, e, generator=rng).argsort(1)[:, :k]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    found, want = (run(grouped_lora, leaves, index, strategy=name) for name in ("fused", "masked"))
    assert_same([found[0], *found[1]], [want[0], *want[1]])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("gate_type", [torch.float64, torch.bfloat16])
def test_a_gate_of_another_type(strategy, gate_type):
    (base, x, a, b, _), index = draw((9, 5, 7, 3, 4, 2))
    leaves = [leaf.detach().float() for leaf in (base, x, a, b)]
    gate = torch.rand(9, 2).to(gate_type).requires_grad_()
    y = grouped_lora(*leaves, index, gate, scale=1.5, strategy=strategy)
    want = grouped_lora_reference(*leaves, index, gate.float(), scale=1.5)
    assert_same([y], [want])
    assert torch.autograd.grad(y.sum(), gate)[0].dtype == gate_type


@pytest.mark.parametrize("width", [5, 80])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_expert_that_stands_twice_counts_twice(strategy, width):
    leaves, _ = draw((4, width, width + 1, 3, 2, 2), gated=True)
    index = torch.tensor([[1, 1], [0, 2], [2, 2], [0, 0]])
    found, want = (
        run(f, leaves, index, **o) for f, o in ((grouped_lora, {"strategy": strategy}), (grouped_lora_reference, {}))
    )
    assert_same([found[0], *found[1]], [want[0], *want[1]])


@needs_kernels
def test_what_is_kept_for_the_backward_is_rank_wide():
    n, d, f, e, r, k = 512, 256, 384, 4, 8, 2
    base, x = torch.randn(n, f), torch.randn(n, d, requires_grad=True)
    a, b = torch.randn(e, r, d, requires_grad=True), torch.randn(e, f, r, requires_grad=True)
    index, gate = torch.rand(n, e).argsort(1)[:, :k], torch.rand(n, k, requires_grad=True)
    own = {t.data_ptr() for t in (x, a, b, gate)}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        grouped_lora(base, x, a, b, index, gate, scale=1.0, strategy="fused")
    extra = sum(t.numel() * t.element_size() for pointer, t in kept.items() if pointer not in own)
    assert extra <= n * k * (r * 4 + 8) + (e + 1) * 8  # z, order, offset


@needs_kernels
def test_the_op_keeps_the_rules_of_torch_library():
    leaves, index = draw((9, 5, 7, 3, 4, 2), gated=True)
    torch.library.opcheck(torch.ops.mmmoe.fused_lora.default, (*leaves[:4], index, leaves[4], 1.5))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiles_whole_forward_and_backward(strategy):
    (base, x, a, b, gate), index = draw((9, 5, 7, 3, 4, 2), gated=True)
    leaves = [base, x, a, b, gate]

    def loss(base, x, a, b, gate):
        return (grouped_lora(base, x, a, b, index, gate, scale=1.5, strategy=strategy) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves))


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_compiles_once_for_any_number_of_tokens(strategy):
    compiled = torch.compile(
        lambda *leaves: grouped_lora(*leaves[:4], leaves[5], leaves[4], scale=1.5, strategy=strategy),
        fullgraph=True, backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for tokens in (5, 9, 14):
        leaves, index = draw((tokens, 6, 7, 3, 4, 2), gated=True)
        want = grouped_lora(*leaves[:4], index, leaves[4], scale=1.5, strategy=strategy)
        torch.testing.assert_close(compiled(*leaves, index), want)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_changes_no_type(strategy):
    (base, x, a, b, _), index = draw((9, 5, 7, 3, 4, 2))
    leaves = [leaf.detach().float() for leaf in (base, x, a, b)]
    want = grouped_lora(*leaves, index, scale=1.5, strategy=strategy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_lora(*leaves, index, scale=1.5, strategy=strategy)
    assert torch.equal(found, want)


@needs_kernels
def test_gradients_of_gradients_are_refused():
    (base, x, a, b, _), index = draw((9, 5, 7, 3, 4, 2))
    y = grouped_lora(base, x, a, b, index, scale=1.5, strategy="fused")
    (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of gradients are not offered"):
        dx.sum().backward()


def test_the_cost_model_knows_the_corners():
    def choice(experts, chosen, rank=16, device="cpu", tokens=4096, can_fuse=True):
        return cheapest(Sizes(tokens, 1024, 1024, experts, rank, chosen), device, can_fuse=can_fuse)

    assert choice(1, 1) == "masked"  # plain LoRA
    assert choice(8, 8) == "masked"  # everybody is chosen
    assert choice(8, 2) == choice(256, 1) == choice(256, 8) == "fused"
    assert choice(4, 1, can_fuse=False) == "masked"
    assert choice(256, 1, can_fuse=False) == "permuted"
    assert choice(8, 2, device="cuda") == "masked"
    assert choice(256, 1, device="cuda") == "fused"
    growing = [costs(Sizes(4096, 1024, 1024, 8, rank, 2), "cpu")["fused"] for rank in (4, 8, 64)]
    assert growing == sorted(growing)


GOOD = {
    "base_NF": torch.zeros(4, 6), "x_ND": torch.zeros(4, 5), "a_ERD": torch.zeros(3, 2, 5),
    "b_EFR": torch.zeros(3, 6, 2), "index_NK": torch.zeros(4, 1, dtype=torch.int64),
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b_EFR": torch.zeros(3, 2, 6)}, r"b \(3, 2, 6\) must be \(3, 6, 2\)"),
        ({"a_ERD": torch.zeros(3, 2, 4)}, r"a \(3, 2, 4\) must be \(experts, rank, 5\)"),
        ({"base_NF": torch.zeros(3, 6)}, r"base \(3, 6\) must have a row for each of 4"),
        ({"x_ND": torch.zeros(4, 5).double()}, "must have one type.*float64"),
        ({"x_ND": torch.zeros(5)}, r"x must have two dimensions.*\(5,\)"),
        ({"index_NK": torch.zeros(4, 1)}, r"index must be int64 \(4, chosen\), got torch.float32"),
        ({"index_NK": torch.zeros(4, 5, dtype=torch.int64)}, "chooses 5 experts; 1 to 3"),
        ({"index_NK": torch.full((4, 1), 3)}, r"index \(4, 1\) holds 3; 0 to 2 work"),
        ({"index_NK": torch.full((4, 1), -1)}, r"index \(4, 1\) holds -1; 0 to 2 work"),
        ({"gate_NK": torch.zeros(4, 2)}, r"gate \(4, 2\) must have the shape of index"),
        ({"a_ERD": torch.zeros(3, 2, 5, device="meta")}, "a .* is on meta, x on cpu"),
    ],
)
def test_bad_input_is_named(change, words, strategy):
    with pytest.raises(ValueError, match=words):
        grouped_lora(**(GOOD | change), scale=1.0, strategy=strategy)


def test_fused_without_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "active", lambda device: backend.Backend("torch", "for this test"))
    with pytest.raises(ValueError, match=r"strategy fused: no kernels for torch\.float32 on cpu"):
        grouped_lora(**GOOD, scale=1.0, strategy="fused")
    assert grouped_lora(**GOOD, scale=1.0).shape == (4, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", ["masked", "permuted", "fused"])
@pytest.mark.parametrize("seed", range(len(LORA)))
def test_a_gpu_computes_what_the_loop_does(seed, strategy):
    assert backend.active("cuda").name == "cuda", backend.active("cuda").reason
    leaves, index = draw(LORA[seed][:6], gated=True, seed=seed)
    leaves = [leaf.detach().float().requires_grad_() for leaf in leaves]
    want = run(grouped_lora_reference, leaves, index)
    found = run(
        grouped_lora, [leaf.detach().cuda().requires_grad_() for leaf in leaves], index.cuda(), strategy=strategy
    )
    assert_same([found[0], *found[1]], [want[0], *want[1]])
