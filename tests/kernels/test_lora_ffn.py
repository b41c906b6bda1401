"""lora_ffn: the fused path and the one put together against the literal loop, properties, memory, bad input."""

from __future__ import annotations

import pytest
import torch
from cases import assert_same, with_gradients
from host_kernels import needs_kernels

from mmmoe.kernels import backend, products
from mmmoe.kernels.lora_ffn import hidden
from mmmoe.kernels.lora_ffn.fused import ACTIVATIONS
from mmmoe.kernels.lora_ffn.op import Factors, Frozen, lora_ffn
from mmmoe.kernels.lora_ffn.reference import lora_ffn_reference
from mmmoe.kernels.memory import weigh
from mmmoe.kernels.products import frozen_product, has_own_product

SHAPES = [
    (0, 8, 12, 3, 2, 1),
    (1, 8, 12, 3, 2, 2),
    (37, 12, 300, 5, 6, 2),
    (21, 9, 17, 4, 17, 4),
    (90, 16, 40, 3, 4, 1),
]
NAMES = ["x", "ag", "bg", "au", "bu", "ad", "bd", "gates"]


def draw(shape, seed=0, dtype=torch.float64):
    """N tokens, D width, F inner width, E experts, R rank, K chosen."""
    n, d, f, e, r, k = shape
    rng = torch.Generator().manual_seed(seed)

    def drawn(*sizes, size=1.0):
        return (torch.randn(sizes, generator=rng) * size).to(dtype)

    frozen = Frozen(drawn(f, d, size=d**-0.5), drawn(f, d, size=d**-0.5), drawn(d, f, size=f**-0.5))
    a, b = (e, r, d), (e, f, r)
    leaves = [drawn(n, d), drawn(*a), drawn(*b), drawn(*a), drawn(*b), drawn(e, r, f, size=0.3), drawn(e, d, r)]
    gates = torch.rand(n, k, generator=rng).to(dtype)
    index = torch.rand(n, e, generator=rng).argsort(1)[:, :k]
    return frozen, [*leaves, gates / gates.sum(1, keepdim=True)], index


def over(function, frozen, index, **options):
    def run(x, ag, bg, au, bu, ad, bd, gates):
        pairs = Factors(ag, bg), Factors(au, bu), Factors(ad, bd)
        return function(x, frozen, *pairs, index, gates, **({"scale": 0.7} | options))

    return run


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_every_gradient_equal_the_loop(shape, activation):
    frozen, leaves, index = draw(shape)
    found = with_gradients(over(lora_ffn, frozen, index, activation=activation), leaves)
    assert_same(found, with_gradients(over(lora_ffn_reference, frozen, index, activation=activation), leaves))


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_single_precision_and_many_spans(activation):
    frozen, leaves, index = draw((300, 64, 700, 6, 16, 2), dtype=torch.float32)
    found = with_gradients(over(lora_ffn, frozen, index, activation=activation), leaves)
    frozen = Frozen(*(w.double() for w in frozen))
    want = with_gradients(over(lora_ffn_reference, frozen, index, activation=activation), [t.double() for t in leaves])
    assert_same(found, [t.float() for t in want])


@needs_kernels
@pytest.mark.parametrize(("rank", "experts"), [(16, 5), (21, 40)])
def test_several_blocks_of_tokens_with_the_same_bits_on_any_threads(rank, experts, threads):
    frozen, leaves, index = draw((2100, 12, 300, experts, rank, 2), dtype=torch.float32)
    index[:, 1] = index[:, 0].where(torch.arange(2100) % 3 == 0, index[:, 1])  # a choice that stands twice
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(with_gradients(over(lora_ffn, frozen, index), leaves))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    frozen = Frozen(*(w.double() for w in frozen))
    want = with_gradients(over(lora_ffn_reference, frozen, index), [t.double() for t in leaves])
    assert_same(found[0], [t.float() for t in want])


@needs_kernels
@pytest.mark.skipif(not has_own_product(torch.empty(1)), reason="products here are MKL's, whose bits may differ")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_however_the_hidden_columns_are_cut(dtype, threads):
    frozen, leaves, index = draw((70, 20, 2700, 5, 6, 2), dtype=dtype)
    found = []
    for most in (512, 1024, 2048, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hidden, "answer", lambda question, device, most=most: most)
            found.append(with_gradients(over(lora_ffn, frozen, index), leaves))
    for count in (1, 5):  # five threads take parts of 2048 columns
        threads(count)
        found.append(with_gradients(over(lora_ffn, frozen, index), leaves))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@needs_kernels
@pytest.mark.parametrize("has_own", [True, False])
@pytest.mark.parametrize("inner", [2700, 1025])
def test_several_parts_of_the_hidden_columns_equal_the_loop(inner, has_own, monkeypatch):
    monkeypatch.setattr(products, "has_own_product", lambda rows: has_own)
    frozen, leaves, index = draw((70, 20, inner, 5, 6, 2))
    found = with_gradients(over(lora_ffn, frozen, index), leaves)
    assert_same(found, with_gradients(over(lora_ffn_reference, frozen, index), leaves))


@needs_kernels
def test_autocast_changes_neither_fresh_experts_nor_their_gradients():
    frozen, leaves, index = draw((20, 8, 30, 4, 2, 2), dtype=torch.float32)
    for name in ("bg", "bu", "bd"):
        leaves[NAMES.index(name)].zero_()
    want = with_gradients(over(lora_ffn, frozen, index), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(over(lora_ffn, frozen, index), leaves)
    assert all(map(torch.equal, found, want))


@needs_kernels
def test_of_all_that_is_as_large_as_hidden_rows_only_c_lives_whole(monkeypatch):
    monkeypatch.setattr(hidden, "answer", lambda question, device: 512)
    frozen, leaves, index = draw((512, 64, 4096, 4, 4, 2), dtype=torch.float32)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    run = over(lora_ffn, frozen, index)
    weighed = weigh(
        lambda: run(*leaves),
        lambda y: torch.autograd.grad(y, leaves, torch.ones_like(y)),
        [*leaves, *frozen, index],
        torch.device("cpu"),
    )
    hidden_rows = 512 * 4096 * 4
    assert 2 * hidden_rows <= weighed.kept < 2.2 * hidden_rows
    assert weighed.peak < 3.2 * hidden_rows


@needs_kernels
def test_fresh_experts_give_the_block_by_the_same_product():
    frozen, leaves, index = draw((300, 64, 700, 4, 16, 1), dtype=torch.float32)
    leaves = [t.zero_() if name in ("bg", "bu", "bd") else t for name, t in zip(NAMES, leaves, strict=True)]
    leaves[NAMES.index("gates")].fill_(1)
    gate, up = (frozen_product(leaves[0], w) for w in (frozen.gate_FD, frozen.up_FD))
    want = frozen_product(torch.nn.functional.silu(gate) * up, frozen.down_DF)
    torch.testing.assert_close(over(lora_ffn, frozen, index)(*leaves), want)


@pytest.mark.usefixtures("path")
def test_derivatives_by_finite_differences():
    frozen, leaves, index = draw((4, 3, 5, 3, 2, 2))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(over(lora_ffn, frozen, index), leaves)


@pytest.mark.usefixtures("path")
def test_fresh_experts_leave_the_frozen_block():
    frozen, leaves, index = draw((20, 8, 30, 4, 2, 2))
    for name in ("bg", "bu", "bd"):
        leaves[NAMES.index(name)].zero_()
    x = leaves[0]
    want = (torch.nn.functional.silu(x @ frozen.gate_FD.T) * (x @ frozen.up_FD.T)) @ frozen.down_DF.T
    torch.testing.assert_close(over(lora_ffn, frozen, index)(*leaves), want)


@pytest.mark.usefixtures("path")
def test_the_numbers_of_experts_do_not_matter():
    frozen, leaves, index = draw((20, 8, 30, 4, 2, 2))
    turn = torch.tensor([2, 0, 3, 1])
    turned = [leaves[0], *(leaf[turn.argsort()] for leaf in leaves[1:7]), leaves[7]]
    found = over(lora_ffn, frozen, turn[index])(*turned)
    torch.testing.assert_close(found, over(lora_ffn, frozen, index)(*leaves))


@pytest.mark.usefixtures("path")
def test_an_expert_without_tokens_gets_gradients_of_zeros():
    frozen, leaves, index = draw((20, 8, 30, 4, 2, 1))
    index = index.clamp(max=2)
    _, _, *gradients = with_gradients(over(lora_ffn, frozen, index), leaves)
    for gradient in gradients[:6]:
        assert not gradient[3].any()
        assert gradient[0].any()


@needs_kernels
@pytest.mark.parametrize("chosen", [2, 4])
def test_less_is_kept_for_the_backward_than_by_the_frozen_block(chosen):
    n, d, f = 256, 64, 512
    frozen, leaves, index = draw((n, d, f, 8, 4, chosen), dtype=torch.float32)
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def bytes_of(run):
        kept = {}
        own = {t.untyped_storage().data_ptr() for t in (*leaves, *frozen)}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            run()
        return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)

    def plain():
        x = leaves[0]
        return (torch.nn.functional.silu(x @ frozen.gate_FD.T) * (x @ frozen.up_FD.T)) @ frozen.down_DF.T

    assert bytes_of(lambda: over(lora_ffn, frozen, index)(*leaves)) <= 0.75 * bytes_of(plain)


@needs_kernels
@pytest.mark.parametrize("shape", [(9, 5, 7, 3, 4, 2), (1, 5, 7, 3, 4, 1), (9, 5, 7, 1, 4, 1)], ids=str)
def test_the_op_keeps_the_rules_of_torch_library(shape):
    frozen, leaves, index = draw(shape)
    x, *factors, gates = (leaf.requires_grad_() for leaf in leaves)
    torch.library.opcheck(torch.ops.mmmoe.lora_ffn.default, (x, *frozen, *factors, index, gates, 1.5, 1))


@pytest.mark.usefixtures("path")
def test_compiles_whole_forward_and_backward():
    frozen, leaves, index = draw((9, 5, 7, 3, 4, 2))
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def loss(*leaves):
        return (over(lora_ffn, frozen, index)(*leaves) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_run(dtype):
    frozen, leaves, index = draw((12, 8, 16, 3, 4, 2), dtype=torch.float32)
    want = over(lora_ffn_reference, frozen, index)(*leaves)
    half = over(lora_ffn, Frozen(*(w.to(dtype) for w in frozen)), index)(*(leaf.to(dtype) for leaf in leaves))
    assert half.dtype == dtype
    assert (half.float() - want).norm() <= 0.05 * want.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "relu"}, "activation is 'relu'; give one of silu, gelu_tanh"),
        ({"x": torch.zeros(3)}, r"x must have two dimensions"),
        ({"ag": torch.zeros(3, 4, 6)}, r"gate.a must be torch.float32 \(3, 4, 5\).*got torch.float32 \(3, 4, 6\)"),
        ({"bd": torch.zeros(3, 4, 5)}, r"down.b must be torch.float32 \(3, 5, 4\)"),
        ({"bu": torch.zeros(3, 7, 4).double()}, r"up.b must be torch.float32 .* got torch.float64"),
        ({"index": torch.zeros(9, 2)}, r"index must be int64 \(9, chosen\), got torch.float32"),
        ({"index": torch.full((9, 2), 3)}, r"index \(9, 2\) holds 3; 0 to 2 work"),
        ({"gates": torch.zeros(9, 1)}, r"gates torch.float32 \(9, 1\) must be numbers of index' shape"),
    ],
)
def test_bad_input_is_named(change, words):
    frozen, leaves, index = draw((9, 5, 7, 3, 4, 2), dtype=torch.float32)
    given = dict(zip(NAMES, leaves, strict=True)) | {"index": index, "activation": "silu"} | change
    index, activation = given.pop("index"), given.pop("activation")
    with pytest.raises(ValueError, match=words):
        over(lora_ffn, frozen, index, activation=activation)(*given.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[2:], (300, 64, 704, 6, 16, 2), (200, 32, 352, 40, 36, 8)], ids=str)
def test_a_gpu_computes_what_the_loop_does(shape, dtype):
    assert backend.active("cuda").name == "cuda", backend.active("cuda").reason
    frozen, leaves, index = draw(shape, dtype=dtype)
    exact = Frozen(*(w.double() for w in frozen))
    want = with_gradients(over(lora_ffn_reference, exact, index), [leaf.double() for leaf in leaves])
    there = over(lora_ffn, Frozen(*(w.cuda() for w in frozen)), index.cuda())
    found = [t.cpu() for t in with_gradients(there, [leaf.cuda() for leaf in leaves])]
    if dtype == torch.float32:
        assert_same(found, [t.float() for t in want])
        return
    for result, loop, exact_result in zip(
        found, with_gradients(over(lora_ffn_reference, frozen, index), leaves), want, strict=True
    ):
        assert (result.double() - exact_result).norm() <= 1.5 * (loop.double() - exact_result).norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_expert_out_of_range_makes_its_token_nan_on_a_gpu():
    frozen, leaves, index = draw((9, 5, 7, 3, 4, 2), dtype=torch.float32)
    want = over(lora_ffn, frozen, index)(*leaves)
    index[4, 1] = 3
    there = over(lora_ffn, Frozen(*(w.cuda() for w in frozen)), index.cuda())
    found = there(*(leaf.cuda() for leaf in leaves)).cpu()
    assert found[4].isnan().all()
    assert_same([found[torch.arange(9) != 4]], [want[torch.arange(9) != 4]])
