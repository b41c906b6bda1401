"""The sparse feed-forward block and its gates against Uni-MoE's modules and DeepSpeed's gating functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmmoe.kernels.order import order_by_expert
from mmmoe.models.lora.balance import RouterSums, balance_term
from mmmoe.models.lora.tape import RoutingTape
from mmmoe.models.moe.gate import capacity_of, route
from mmmoe.models.moe.layer import SparseFFN, fill_expert
from mmmoe.models.moe.place import ALONE
from mmmoe.models.moe.spec import ExpertLoRASpec, GateSpec, MoESpec

PROJECTIONS = ("gate", "up", "down")


def sparse_block(config, **fields) -> SparseFFN:
    """A sparse block of the case's sizes, on weights that the case will replace."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    linears = {name: nn.Linear(width, inner, bias=False) for name in ("gate_proj", "up_proj")}
    block = SimpleNamespace(**linears, down_proj=nn.Linear(inner, width, bias=False), act_fn=F.silu)
    # Built rather than validated: the released top-1 rule cannot train its router, so a declaration refuses it.
    gate = GateSpec.model_construct(**(GateSpec().model_dump() | {"k": config["top_k"]}))
    spec = MoESpec(sites=["*"], experts=["base"] * config["experts"], **fields)
    return SparseFFN(block, spec.model_copy(update={"gate": gate}), RoutingTape(["0"]), 0, ALONE)


def recorded(layer, x):
    with layer.tape.recording() as rows:
        return layer(x), rows[0]


@pytest.mark.golden("uni_moe/ffn*")
def test_four_expert_block(case) -> None:
    layer, weights = sparse_block(case.config), case.group("weight")
    for number in range(case.config["experts"]):
        fill_expert(layer, number, {p: weights[f"experts.{number}.{p}_proj.weight"] for p in PROJECTIONS})
    layer.router.weight.data.copy_(weights["gate.weight"])
    x = case.tensors["input.x"].requires_grad_()
    y, row = recorded(layer, x)
    case.check("output.y", y)
    case.check("output.router_logits", row.logits_BTE.flatten(0, 1))
    case.check("output.expert_index", row.index_BTK.flatten(0, 1))
    (y * case.tensors["cotangent.y"]).sum().backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.gate.weight", layer.router.weight.grad)
    for name in PROJECTIONS:
        for number, grad in enumerate(getattr(layer.experts, f"{name}_proj").weight_EOI.grad):
            case.check(f"grad_weight.experts.{number}.{name}_proj.weight", grad)


@pytest.mark.golden("uni_moe/layer8*")
def test_eight_expert_layer_with_lora_and_balance(case) -> None:
    config = case.config
    layer = sparse_block(config, lora=ExpertLoRASpec(rank=config["lora_r"], alpha=config["lora_alpha"])).eval()
    weights, root = case.group("weight.deepspeed_moe"), "experts.deepspeed_experts"
    layer.router.weight.data.copy_(weights["gate.wg.weight"])
    for number in range(config["experts"]):
        fill_expert(layer, number, {p: weights[f"{root}.{number}.{p}_proj.weight"] for p in PROJECTIONS})
        for p in PROJECTIONS:
            lora = getattr(layer.experts, f"{p}_proj").lora
            lora.a_ERI.data[number] = weights[f"{root}.{number}.{p}_proj_lora_A.weight"]
            lora.b_EOR.data[number] = weights[f"{root}.{number}.{p}_proj_lora_B.weight"]
    x = case.tensors["input.x"].requires_grad_()
    y, row = recorded(layer, x)
    case.check("output.y", y)
    balance = first_choice_balance(row.logits_BTE.flatten(0, 1), row.index_BTK.flatten(0, 1))
    case.check("output.l_aux", balance)
    ((y * case.tensors["cotangent.y"]).sum() + balance * case.tensors["cotangent.l_aux"]).backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.deepspeed_moe.gate.wg.weight", layer.router.weight.grad)
    for p in PROJECTIONS:
        linear = getattr(layer.experts, f"{p}_proj")
        for number in range(config["experts"]):
            name = f"grad_weight.deepspeed_moe.{root}.{number}.{p}_proj"
            for suffix, grad in (("_lora_A", linear.lora.a_ERI.grad), ("_lora_B", linear.lora.b_EOR.grad)):
                case.check(f"{name}{suffix}.weight", grad[number])
            if f"{name}.weight" in case.tensors:
                case.check(f"{name}.weight", linear.weight_EOI.grad[number])


@pytest.mark.golden("deepspeed_gate/*")
def test_gating_functions(case) -> None:
    config = case.config
    logits = case.tensors["input.logits"].requires_grad_()
    used = case.tensors.get("input.used_token")
    valid = None if used is None else used.bool()
    drop = {1: "position", 2: "choice"}.get(config["k"], "probability")
    fields = {"capacity_factor": config["capacity_factor"], "min_capacity": config["min_capacity"], "drop": drop}
    if not config["drop_tokens"]:
        # A capacity that nothing reaches: it only puts second choices behind first ones, as DeepSpeed's table has them.
        fields = {"capacity_factor": config["experts"], "drop": drop} if config["k"] == 2 else {}
    spec = GateSpec(k=config["k"], weights="softmax" if config["k"] == 1 else "renormalised", **fields)
    routing = route(logits, spec, valid)
    if config["drop_tokens"]:
        assert capacity_of(spec, *logits.shape) == config["capacity"]
    chosen = routing.expert_NK if valid is None else routing.expert_NK[valid]
    case.check("output.expert_counts", torch.bincount(chosen.flatten(), minlength=config["experts"]))
    counted = chosen if config["k"] != 2 else routing.expert_NK[:, :1]
    balance = balance_of(logits, counted)
    case.check("output.l_aux", balance)
    want = case.tensors["output.combine_weights"]
    if config["k"] == 1 and config["drop_tokens"]:
        routing = with_their_tokens(routing, logits, want)
    # Ours: one weight a slot and its place among the expert's rows. Theirs: a table over (token, expert, place).
    place_NK = routing.inverse_S.view_as(routing.expert_NK)
    is_kept_NK = place_NK >= 0
    slot_NK = (place_NK - routing.offset_E1[routing.expert_NK])[is_kept_NK]
    token_NK = torch.arange(len(logits))[:, None].expand_as(place_NK)
    table = torch.zeros_like(want).index_put(
        (token_NK[is_kept_NK], routing.expert_NK[is_kept_NK], slot_NK), routing.gate_NK[is_kept_NK]
    )
    case.check("output.combine_weights", table)
    ((table * case.tensors["cotangent.combine_weights"]).sum() + balance).backward()
    case.check("grad_input.logits", logits.grad)


def with_their_tokens(routing, logits_NE, want_NEC):
    """The routing with the tokens that DeepSpeed kept: top-1 takes any of an expert's, as ties fall."""
    is_theirs_N = (want_NEC > 0).flatten(1).any(1)
    is_ours_N = routing.inverse_S >= 0
    expert_N = routing.expert_NK[:, 0]
    for expert in range(want_NEC.shape[1]):
        assert (is_theirs_N & (expert_N == expert)).sum() == (is_ours_N & (expert_N == expert)).sum()
    gate_NK = logits_NE.softmax(-1).gather(1, routing.expert_NK) * is_theirs_N[:, None]
    return SimpleNamespace(
        gate_NK=gate_NK,
        expert_NK=routing.expert_NK,
        **order_by_expert(expert_N.masked_fill(~is_theirs_N, -1), want_NEC.shape[1])._asdict(),
    )


def first_choice_balance(logits_NE, expert_NK):
    return balance_of(logits_NE, expert_NK[:, :1])


def balance_of(logits_NE, expert_NK):
    """E sum f P with f counted over the given choices; shares are of all tokens, as DeepSpeed's."""
    probability_BE = logits_NE.softmax(-1).sum(0, keepdim=True)
    load_BE = torch.bincount(expert_NK.flatten(), minlength=logits_NE.shape[1])[None]
    rows_B = torch.tensor([len(logits_NE)])
    whole = len(logits_NE) * expert_NK.shape[1]
    return balance_term(RouterSums(probability_BE, load_BE, rows_B.float(), rows_B))[0] * load_BE.sum() / whole
