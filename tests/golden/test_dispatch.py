"""route_topk, dispatch and combine against loops that were written for these fixtures.

`output.padded_*` are not compared: they are offsets for products that want whole blocks, and none of ours does.
"""

from __future__ import annotations

import pytest
import torch

from mmmoe.kernels import backend
from mmmoe.kernels.combine.op import combine
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.route_topk.op import route_topk


@pytest.fixture(params=["c++", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(backend, "active", lambda device: backend.Backend("torch", "for this test"))


def routed(case, logits, **options):
    valid = case.tensors.get("input.valid")
    return route_topk(logits, case.config["k"], "softmax_renormalised", valid_N=valid, **options)


def through_experts(routing, x, experts):
    """Returns the dispatched rows, what the experts make of them, and the combined output."""
    rows = dispatch(x, routing.order_S, routing.inverse_S)
    kept = int(routing.offset_E1[-1])
    done = torch.cat([part @ w for part, w in zip(rows[:kept].split(routing.count_E.tolist()), experts, strict=True)])
    padded = torch.cat([done, done.new_zeros(len(rows) - kept, done.shape[1])])
    return rows[:kept], done, combine(padded, routing.gate_NK, routing.order_S, routing.inverse_S)


@pytest.mark.golden("dispatch/case*")
@pytest.mark.usefixtures("path")
def test_dispatch(case):
    logits, x, experts = (
        case.tensors[name].clone().requires_grad_() for name in ("input.logits", "input.x", "weight.experts")
    )
    routing = routed(case, logits)
    rows, done, y = through_experts(routing, x, experts)
    kept, chosen = len(rows), case.config["k"]
    case.check("output.expert_index", routing.expert_NK)
    case.check("output.weight", routing.gate_NK)
    case.check("output.counts", routing.count_E)
    case.check("output.offsets", routing.offset_E1)
    case.check("output.inverse", routing.inverse_S)
    case.check("output.sorted_assignment", routing.order_S[:kept])
    case.check("output.sorted_token", routing.order_S[:kept] // chosen)
    case.check("output.sorted_slot", routing.order_S[:kept] % chosen)
    case.check("output.dispatched", rows)
    case.check("output.expert_output", done)
    case.check("output.combined", y)
    (y * case.tensors["cotangent.combined"]).sum().backward()
    case.check("grad_input.logits", logits.grad)
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.experts", experts.grad)


@pytest.mark.golden("dispatch/case*")
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("priority", "name"), [("token", "token_major"), ("choice", "slot_major")])
def test_order_within_experts_and_capacity(case, priority, name):
    routing = routed(case, case.tensors["input.logits"], priority=priority)
    first = routing.offset_E1[routing.expert_NK]
    position = routing.inverse_S.view_as(routing.expert_NK) - first
    case.check(f"output.position_{name}", torch.where(routing.inverse_S.view_as(first) < 0, -1, position))
    if "capacity" not in case.config:
        return
    kept = routed(case, case.tensors["input.logits"], priority=priority, capacity=case.config["capacity"])
    case.check(f"output.kept_{name}", (kept.inverse_S >= 0).view_as(first))
    *_, y = through_experts(kept, case.tensors["input.x"], case.tensors["weight.experts"])
    case.check(f"output.combined_{name}", y)
