"""route_topk: the torch path and the CUDA sources against the literal loop, and what a barrier is worth."""

from __future__ import annotations

import pytest
import torch
from host_kernels import barriers, needs_toolkit, route_on_host, schedule, survives, without_barrier

from mmmoe.kernels.backend import call, library
from mmmoe.kernels.build import build
from mmmoe.kernels.route_topk.op import RULES, route_topk
from mmmoe.kernels.route_topk.reference import route_topk_reference

# N tokens, E experts, K chosen, capacity
SHAPES = [(0, 4, 1, None), (1, 5, 1, None), (70, 8, 2, None), (130, 60, 4, 9), (65, 3, 3, 20), (40, 130, 8, 2)]
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


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_loop(shape, gates):
    logits = draw(shape)
    check_equal(route_topk(logits, shape[2], gates, shape[3]), route_topk_reference(logits, shape[2], gates, shape[3]))


def test_ties_go_to_the_lower_expert_and_strides_do_not_matter():
    logits = torch.zeros(9, 12).t()[:6]
    found = route_topk(logits, 3)
    assert found.expert_NK.tolist() == [[0, 1, 2]] * 6
    check_equal(found, route_topk_reference(logits, 3))


def test_one_expert_takes_all():
    logits = torch.zeros(50, 4)
    logits[:, 2] = 5.0
    found = route_topk(logits, 1, capacity=7)
    assert found.count_E.tolist() == [0, 0, 7, 0]
    assert found.order_S.tolist() == [*range(7), *[-1] * 43]
    assert (found.gate_NK[7:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_routed_in_float32(dtype):
    logits = draw((33, 7)).to(dtype)
    found = route_topk(logits, 2)
    assert found.gate_NK.dtype == torch.float32
    check_equal(found, route_topk_reference(logits, 2))


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("capacity", [None, 3])
def test_gradient(gates, capacity):
    logits = draw((12, 5), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: route_topk(x, 2, gates, capacity).gate_NK, (logits,))


def test_the_op_keeps_the_rules_of_torch_library():
    logits = draw((20, 6)).requires_grad_()
    torch.library.opcheck(torch.ops.mmmoe.route_topk.default, (logits, 2, 0, 2**62))


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
        ({"logits_NE": torch.zeros(3)}, r"two dimensions.*\(3,\)"),
        ({"logits_NE": torch.zeros(3, 2000)}, "2000 experts"),
        ({"logits_NE": torch.zeros(3, 4, dtype=torch.int64)}, "torch.int64 on cpu"),
        ({"logits_NE": torch.tensor([[0.0, 1, 2, 3], [0, float("nan"), 2, 3]])}, r"NaN in 1 of 2 rows.*\[1\]"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        route_topk(**{"logits_NE": torch.zeros(3, 4), "num_chosen": 2, **change})


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("by_priority", [False, True], ids=["random", "priority"])
def test_the_kernels_equal_the_loop_under_twenty_schedules(by_priority):
    loaded = library(build("host").as_posix())
    for seed in range(20):
        shape = SHAPES[seed % len(SHAPES)]
        gates = GATES[seed % len(GATES)]
        schedule(loaded, seed, by_priority)
        logits = draw(shape, seed)
        want = route_topk_reference(logits, shape[2], gates, shape[3])
        found = route_on_host(loaded, logits, shape[2], gates, shape[3])
        check_equal(found, want)
        dgate = torch.randn(found.gate_NK.shape)
        dlogits = torch.full_like(logits, float("nan"))
        call(
            loaded, "mmmoe_route_backward", logits, found.expert_NK, found.inverse_S, dgate, dlogits,
            *logits.shape, shape[2], RULES[gates], 0,
        )  # fmt: skip
        expected = torch.ops.mmmoe.route_topk_backward(dgate, logits, want.expert_NK, want.inverse_S, RULES[gates])
        torch.testing.assert_close(dlogits, expected, rtol=2e-5, atol=1e-6)


@needs_toolkit
def test_a_row_with_nan_gets_nan_gates_from_the_kernels():
    logits = draw((70, 8))
    logits[5, 3] = float("nan")
    found = route_on_host(library(build("host").as_posix()), logits, 2)
    assert found.gate_NK[5].isnan().all()
    assert found.gate_NK.isnan().sum() == 2
    assert sorted(found.order_S.tolist()) == list(range(140))


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(barriers("route.cu"))))
def test_no_barrier_can_be_left_out(number, tmp_path):
    broken = without_barrier("route.cu", number, tmp_path)

    def is_right(seed):
        logits = draw((130, 20), seed)
        want = route_topk_reference(logits, 8, "softmax", 60)
        dgate = torch.ones_like(want.gate_NK)
        expected = torch.ops.mmmoe.route_topk_backward(dgate, logits, want.expert_NK, want.inverse_S, 0)

        def check():
            schedule(broken, seed, by_priority=seed % 2 == 0)
            found = route_on_host(broken, logits, 8, "softmax", 60)
            dlogits = torch.full_like(logits, float("nan"))
            call(
                broken, "mmmoe_route_backward", logits, want.expert_NK, want.inverse_S, dgate, dlogits,
                130, 20, 8, 0, 0,
            )  # fmt: skip
            same = all(torch.equal(a, b) for a, b in zip(found[1:], want[1:], strict=True))
            return same and torch.allclose(dlogits, expected, atol=1e-5)

        return survives(check)

    assert not all(is_right(seed) for seed in range(40)), "40 schedules did not show that this barrier is missing"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", [*SHAPES, (8192, 128, 8, None)], ids=str)
def test_the_gpu_equals_the_torch_path(shape, gates):
    from mmmoe.kernels.backend import active

    assert active().name == "cuda", active().reason
    logits = draw(shape, dtype=torch.float32)
    want = route_topk(logits, shape[2], gates, shape[3])
    on_gpu = logits.cuda().requires_grad_()
    found = route_topk(on_gpu, shape[2], gates, shape[3])
    check_equal(type(want)(*(t.detach().cpu() for t in found)), want)
    dgate = torch.randn(want.gate_NK.shape)
    (dlogits,) = torch.autograd.grad(found.gate_NK, on_gpu, dgate.cuda())
    expected = torch.ops.mmmoe.route_topk_backward(dgate, logits, want.expert_NK, want.inverse_S, RULES[gates])
    torch.testing.assert_close(dlogits.cpu(), expected, rtol=2e-5, atol=1e-6)
