"""send_order: against the loop, once a rank, and a whole expert-parallel round trip equal to one process."""

from __future__ import annotations

import pytest
import torch
from cases import assert_same

from mmmoe.env import free_port
from mmmoe.kernels.combine.op import combine, gather_sum
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.order import order_by_expert
from mmmoe.kernels.route_topk.op import route_topk
from mmmoe.kernels.send_order.exchange import exchange_counts, exchange_rows
from mmmoe.kernels.send_order.op import send_order
from mmmoe.kernels.send_order.reference import send_order_reference

E, K, D, N = 8, 3, 12, 40


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_equals_the_loop_and_sends_a_token_once(ranks, tokens):
    expert = torch.rand(tokens, E, generator=torch.Generator().manual_seed(tokens)).argsort(1)[:, :K]
    found = send_order(expert, E, ranks)
    assert_same(found, send_order_reference(expert, E, ranks))
    for rank in range(ranks):
        carried = found.order_S[found.offset_E1[rank] : found.offset_E1[rank + 1]] // K
        assert torch.equal(carried, carried.unique())
        assert set(carried.tolist()) == {n for n in range(tokens) if (expert[n] // (E // ranks) == rank).any()}


@pytest.mark.parametrize(
    ("expert", "experts", "ranks", "words"),
    [
        (torch.zeros(3, 2), 8, 2, r"expert must be int64 \(tokens, chosen\), got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), 8, 3, "num_experts 8 must be a multiple of num_ranks 3"),
        (torch.zeros(3, 9, dtype=torch.int64), 16, 2, "chooses 9; 1 to 8"),
        (torch.full((3, 2), 8), 8, 2, r"expert \(3, 2\) holds 8; 0 to 7 work"),
    ],
)
def test_bad_input_is_named(expert, experts, ranks, words):
    with pytest.raises(ValueError, match=words):
        send_order(expert, experts, ranks)


def test_the_op_keeps_the_rules_of_torch_library():
    torch.library.opcheck(torch.ops.mmmoe.send_order.default, (torch.rand(9, E).argsort(1)[:, :K], E, 2))


def experts_on(rows, order, weight_EDD, gate):
    """Returns the gate-weighted experts' outputs of rows whose slots are in an order."""
    sent = dispatch(rows, order.order_S, order.inverse_S)
    counts = order.count_E.tolist()
    *blocks, rest = sent.split([*counts, len(sent) - sum(counts)])
    done = torch.cat([*(block @ weight for block, weight in zip(blocks, weight_EDD, strict=True)), rest])
    return combine(done, gate, order.order_S, order.inverse_S)


def inputs(rank):
    rng = torch.Generator().manual_seed(rank)
    x, logits = torch.randn(N + rank, D, generator=rng), torch.randn(N + rank, E, generator=rng)
    weight = torch.randn(E, D, D, generator=torch.Generator().manual_seed(99))
    return [t.double().requires_grad_() for t in (x, logits, weight)]


def alone(rank):
    x, logits, weight = inputs(rank)
    routing = route_topk(logits, K, "softmax_renormalised")
    y = experts_on(x, order_by_expert(routing.expert_NK.reshape(-1), E), weight, routing.gate_NK)
    return y, torch.autograd.grad(y.pow(2).sum(), [x, logits, weight])


def in_a_group(rank, ranks, port, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    x, logits, weight = inputs(rank)
    share = E // ranks
    routing = route_topk(logits, K, "softmax_renormalised")
    order = send_order(routing.expert_NK, E, ranks)
    counts = exchange_counts(order.count_E)
    carrier = order.order_S[: sum(counts.sent)]
    token, to = carrier // K, routing.expert_NK.reshape(-1)[carrier] // share
    is_there = routing.expert_NK[token] // share == to[:, None]
    expert = torch.where(is_there, routing.expert_NK[token] % share, -1)
    rows = exchange_rows(dispatch(x, order.order_S, order.inverse_S)[: len(carrier)], counts)
    gate = exchange_rows(routing.gate_NK[token] * is_there, counts)
    expert = exchange_rows(expert, counts)
    own = weight[rank * share : (rank + 1) * share]
    y = experts_on(rows, order_by_expert(expert.reshape(-1), share), own, gate)
    back = exchange_rows(y, type(counts)(counts.received, counts.sent))
    y = GatherSum.apply(back, order.inverse_S, len(x))
    gradients = torch.autograd.grad(y.pow(2).sum(), [x, logits, weight])
    torch.distributed.all_reduce(gradients[2])
    results[rank] = (y.detach(), [g.detach() for g in gradients], sum(counts.sent))
    torch.distributed.destroy_process_group()


class GatherSum(torch.autograd.Function):
    """Adds up what came back; its gradient is a gather."""

    @staticmethod
    def forward(ctx, rows, inverse, tokens):
        ctx.save_for_backward(inverse)
        ctx.rows = len(rows)
        return gather_sum(rows, None, inverse, tokens)

    @staticmethod
    def backward(ctx, dy):
        (inverse,) = ctx.saved_tensors
        carriers = torch.nonzero(inverse >= 0)[:, 0]
        drows = dy.new_empty(ctx.rows, dy.shape[1])
        drows[inverse[carriers]] = dy[carriers // (len(inverse) // len(dy))]
        return drows, None, None


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_round_trip_over_ranks_equals_one_process(ranks):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(in_a_group, (ranks, free_port(), results), nprocs=ranks)
        found = dict(results)
    want = [alone(rank) for rank in range(ranks)]
    for rank in range(ranks):
        y, gradients, sent = found[rank]
        assert_same([y, *gradients[:2]], [want[rank][0].detach(), *want[rank][1][:2]])
        assert_same([gradients[2]], [sum(w[1][2] for w in want)])
        assert sent < K * (N + rank), "some tokens have two experts on one rank, and are sent once"
