"""route_topk: both paths of the CPU against the literal loop, ties, capacity, gradient, bad input, compile."""

from __future__ import annotations

import pytest
import torch
from cases import ROUTES

from mmmoe.kernels import backend
from mmmoe.kernels.route_topk.op import RULES, route_topk
from mmmoe.kernels.route_topk.reference import route_topk_reference

SHAPES = [*ROUTES, (9000, 7, 2, 2100)]
"""The last one is large enough for several threads."""
GATES = tuple(RULES)


def draw(shape, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0], shape[1], generator=rng, dtype=dtype)


def check_equal(found, want):
    for name, a, b in zip(found._fields, found, want, strict=True):
        if name == "gate_NK":
            torch.testing.assert_close(a, b.to(a.dtype), rtol=2e-6, atol=1e-7)
        else:
            assert torch.equal(a, b), name


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_loop(shape, gates):
    logits = draw(shape)
    check_equal(route_topk(logits, shape[2], gates, shape[3]), route_topk_reference(logits, shape[2], gates, shape[3]))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("priority", ["token", "choice"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] < 9000], ids=str)
def test_padding_and_priority(shape, priority):
    logits = draw(shape)
    valid = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)) < 0.7
    options = {"capacity": shape[3], "valid_N": valid, "priority": priority}
    check_equal(route_topk(logits, shape[2], **options), route_topk_reference(logits, shape[2], **options))


@pytest.mark.usefixtures("path")
def test_ties_go_to_the_lower_expert_and_strides_do_not_matter():
    logits = torch.zeros(9, 12).t()[:6]
    found = route_topk(logits, 3)
    assert found.expert_NK.tolist() == [[0, 1, 2]] * 6
    check_equal(found, route_topk_reference(logits, 3))


@pytest.mark.usefixtures("path")
def test_one_expert_takes_all():
    logits = torch.zeros(50, 4)
    logits[:, 2] = 5.0
    found = route_topk(logits, 1, capacity=7)
    assert found.count_E.tolist() == [0, 0, 7, 0]
    assert found.order_S.tolist() == [*range(7), *[-1] * 43]
    assert (found.gate_NK[7:] == 0).all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_routed_in_float32(dtype):
    logits = draw((33, 7)).to(dtype)
    found = route_topk(logits, 2)
    assert found.gate_NK.dtype == torch.float32
    check_equal(found, route_topk_reference(logits, 2))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("capacity", [None, 3])
def test_gradient(gates, capacity):
    logits = draw((12, 5), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: route_topk(x, 2, gates, capacity).gate_NK, (logits,))


def test_the_op_keeps_the_rules_of_torch_library():
    logits = draw((20, 6)).requires_grad_()
    torch.library.opcheck(torch.ops.mmmoe.route_topk.default, (logits, None, 2, 0, 2**62, False))


def test_compiles_whole_forward_and_backward():
    logits = draw((24, 6)).requires_grad_()

    def loss(x):
        routing = route_topk(x, 2, "softmax_renormalised")
        return (routing.gate_NK * torch.arange(2.0)).sum() + routing.order_S[0]

    (expected,) = torch.autograd.grad(loss(logits), logits)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(logits), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_chosen": 5}, "num_chosen is 5; with 4 experts 1 to 4"),
        ({"num_chosen": 0}, "num_chosen is 0"),
        ({"gates": "sigmoid"}, "gates is 'sigmoid'"),
        ({"capacity": 0}, "capacity is 0"),
        ({"priority": "slot"}, "priority is 'slot'"),
        ({"valid_N": torch.ones(4, dtype=torch.bool)}, r"valid must be bool \(3,\), got torch.bool \(4,\)"),
        ({"valid_N": torch.ones(3)}, "valid must be bool .* got torch.float32"),
        ({"logits_NE": torch.zeros(3)}, r"two dimensions.*\(3,\)"),
        ({"logits_NE": torch.zeros(3, 2000)}, "2000 experts"),
        ({"logits_NE": torch.zeros(3, 4, dtype=torch.int64)}, "torch.int64 on cpu"),
    ],
)
@pytest.mark.usefixtures("path")
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        route_topk(**{"logits_NE": torch.zeros(3, 4), "num_chosen": 2, **change})


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("capacity", [None, 1])
@pytest.mark.parametrize("spoilt", [[0.0, torch.nan, 2.0, 3.0], [torch.nan] * 4, [-torch.inf] * 4], ids=str)
@pytest.mark.usefixtures("path")
def test_a_row_without_a_softmax_has_nan_gates_experts_that_exist_and_leaves_the_others_alone(spoilt, capacity, gates):
    sound = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])
    found = route_topk(torch.cat([sound, torch.tensor([spoilt])]), 2, gates, capacity)
    alone = route_topk(sound, 2, gates, capacity)
    assert bool(found.gate_NK[2].isnan().all())
    assert sorted({0, 1, 2, 3} & set(found.expert_NK[2].tolist())) == sorted(found.expert_NK[2].tolist())
    torch.testing.assert_close(found.gate_NK[:2], alone.gate_NK, rtol=0, atol=0)
    assert torch.equal(found.expert_NK[:2], alone.expert_NK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", [*ROUTES, (8192, 128, 8, None)], ids=str)
def test_the_gpu_equals_the_torch_path(shape, gates):
    assert backend.active("cuda").name == "cuda", backend.active("cuda").reason
    logits = draw(shape, dtype=torch.float32)
    want = route_topk(logits, shape[2], gates, shape[3])
    on_gpu = logits.cuda().requires_grad_()
    found = route_topk(on_gpu, shape[2], gates, shape[3])
    check_equal(type(want)(*(t.detach().cpu() for t in found)), want)
    dgate = torch.randn(want.gate_NK.shape)
    (dlogits,) = torch.autograd.grad(found.gate_NK, on_gpu, dgate.cuda())
    expected = torch.ops.mmmoe.route_topk_backward(dgate, logits, want.expert_NK, want.inverse_S, RULES[gates])
    torch.testing.assert_close(dlogits.cpu(), expected, rtol=2e-5, atol=1e-6)
