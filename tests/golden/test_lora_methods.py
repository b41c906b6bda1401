"""MoLA's linear layer and MixLoRA's block, with their balance losses, against recordings of the authors' code.

Ours has one convention for the balance: 1 for even loads. MoLA's is its sum over layers, MixLoRA's is k times ours.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from mmmoe.models.lora.balance import balance_terms, z_terms
from mmmoe.models.lora.block import FFNExperts
from mmmoe.models.lora.layer import RoutedLinear
from mmmoe.models.lora.router import top_p
from mmmoe.models.lora.routing import Positions, router_sums
from mmmoe.models.lora.spec import PROJECTIONS, BalanceSpec, ExpertsSpec, RouterSpec
from mmmoe.models.lora.tape import RoutingRow, RoutingTape

SIZES = ("hidden_size", "intermediate_size")
BALANCE = BalanceSpec(kind="per_layer", over="micro_batch")


def router_spec(k):
    return RouterSpec(selection="topk", k=k, bias=False)


def row_of(logits_NE, k):
    """Returns a router's row for one sample that holds all tokens."""
    probability_NE = logits_NE.softmax(-1)
    return RoutingRow(logits_NE[None], probability_NE[None], probability_NE.topk(k).indices[None])


def sums_of(row, mask_BT=None):
    shape = row.index_BTK.shape[:2]
    mask_BT = torch.ones(shape, dtype=torch.bool) if mask_BT is None else mask_BT
    positions = Positions(mask_BT, torch.zeros(shape, dtype=torch.int64), ("text",))
    return router_sums(row, positions, positions.loads(row))


def balance(sums):
    return balance_terms(sums, BALANCE)[0].mean()


@pytest.mark.golden("lora_methods/mola_linear*")
@pytest.mark.parametrize("strategy", ["auto", "masked", "permuted", "fused"])
def test_mola_linear(case, strategy):
    config, weights = case.config, case.group("weight")
    k, rank, experts = config["top_k_here"], config["rank_here"], config["experts_here"]
    base = nn.Linear(config["in_features"], config["out_features"], bias="bias" in weights).requires_grad_(False)
    base.load_state_dict({name: weights[name] for name in dict(base.named_parameters())})
    spec = ExpertsSpec(
        level="linear", sites=["*"], experts=experts, rank=rank, alpha=config["alpha"], router=router_spec(k),
        balance=BALANCE,
    )  # fmt: skip
    layer = RoutedLinear(base, spec, experts, tape := RoutingTape(["layers.0.q_proj"]), 0)
    layer.router.weight.data = weights["router.router.weight"]
    layer.experts.a_ERD.data = torch.stack([weights[f"lora_A.default_{e}.weight"] for e in range(experts)])
    layer.experts.b_EDR.data = torch.stack([weights[f"lora_B.default_{e}.weight"] for e in range(experts)])
    layer.experts.strategy = strategy

    x = case.tensors["input.x"].clone().requires_grad_()
    with tape.recording() as rows:
        y = layer(x)
    aux_loss = balance([sums_of(rows[0])])
    case.check("output.y", y)
    case.check("output.router_logits", rows[0].logits_BTE.flatten(0, 1))
    case.check("output.expert_index", rows[0].index_BTK.flatten(0, 1))
    case.check("output.aux_loss", aux_loss)
    loss = (y * case.tensors["cotangent.y"]).sum() + aux_loss * case.tensors["cotangent.aux_loss"]
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.router.router.weight", layer.router.weight.grad)
    for e in range(experts):
        case.check(f"grad_weight.lora_A.default_{e}.weight", layer.experts.a_ERD.grad[e])
        case.check(f"grad_weight.lora_B.default_{e}.weight", layer.experts.b_EDR.grad[e])


@pytest.mark.golden("lora_methods/mola_aux_several_layers")
def test_mola_balance_over_layers(case):
    logits = [case.tensors[f"input.logits.{n}"].clone().requires_grad_() for n in range(len(case.config["experts"]))]
    rows = [row_of(layer, k) for layer, k in zip(logits, case.config["top_k"], strict=True)]
    aux_loss = balance([sums_of(row) for row in rows]) * len(rows)
    case.check("output.aux_loss", aux_loss)
    loss = aux_loss * case.tensors["cotangent.aux_loss"]
    case.check("output.loss", loss)
    loss.backward()
    for n, layer in enumerate(logits):
        case.check(f"grad_input.logits.{n}", layer.grad)


@pytest.mark.golden("lora_methods/mixlora_ffn_*")
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_mixlora_block(case, kernels):
    config, weights = case.config, case.group("weight")
    k, experts = config["top_k"], config["experts"]
    projections = [name for name in PROJECTIONS if f"{name}_proj" in config["targets"]]
    base = LlamaMLP(LlamaConfig(**{size: config[size] for size in SIZES}, num_attention_heads=1)).requires_grad_(False)
    base.load_state_dict({name: weights[f"base.{name}"] for name in dict(base.named_parameters())})
    spec = ExpertsSpec(
        level="ffn", sites=["*"], experts=experts, rank=config["rank"], alpha=config["alpha"], balance=BALANCE,
        rslora=config["rslora"], router=router_spec(k), projections=projections,
    )  # fmt: skip
    block = FFNExperts(base, spec, experts, tape := RoutingTape(["layers.0.mlp"]), 0)
    if not kernels:
        block.activation = base.act_fn  # a function that the kernels do not know
    block.router.weight.data = weights["gate"]
    for name, stack in block.experts.items():
        names = [f"experts.{e}.{name}_proj.lora" for e in range(experts)]
        stack.a_ERD.data = torch.stack([weights[f"{expert}_A.weight"] for expert in names])
        stack.b_EDR.data = torch.stack([weights[f"{expert}_B.weight"] for expert in names])

    x = case.tensors["input.x"].clone().requires_grad_()
    with tape.recording() as rows:
        y = block(x)
    masked = case.tensors["input.attention_mask"].bool()
    losses = {
        "y": y,
        "aux_loss": balance([sums_of(rows[0])]) * k,
        "aux_loss_masked": balance([sums_of(rows[0], masked)]) * k,
    }
    case.check("output.router_logits", rows[0].logits_BTE.flatten(0, 1))
    case.check("output.expert_index", rows[0].index_BTK.flatten(0, 1))
    for name, value in losses.items():
        case.check(f"output.{name}", value)
    loss = sum((value * case.tensors[f"cotangent.{name}"]).sum() for name, value in losses.items())
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_weight.gate", block.router.weight.grad)
    for name, stack in block.experts.items():
        for e in range(experts):
            case.check(f"grad_weight.experts.{e}.{name}_proj.lora_A.weight", stack.a_ERD.grad[e])
            case.check(f"grad_weight.experts.{e}.{name}_proj.lora_B.weight", stack.b_EDR.grad[e])


@pytest.mark.golden("lora_methods/mixlora_switch_losses")
def test_switch_balance_and_z_loss(case):
    logits = case.tensors["input.logits"].clone().requires_grad_()
    sums = [sums_of(row_of(logits, 1))]
    found = {"z_loss": z_terms(sums, BALANCE)[0].mean(), "balance_loss": balance(sums)}
    for name, value in found.items():
        case.check(f"output.{name}", value)
    loss = sum(value * case.tensors[f"cotangent.{name}"] for name, value in found.items())
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.logits", logits.grad)


@pytest.mark.golden("lora_methods/mixlora_dynamic_top_p_*")
def test_dynamic_selection(case):
    """The authors' temperature divides probabilities, not logits; we have none, so the test divides."""
    logits = case.tensors["input.logits"].clone().requires_grad_()
    probability_NE = logits.softmax(-1)
    divided_NE = probability_NE / (case.config["temperature"] or 1.0)
    weight_NE, index_NE = top_p(divided_NE, case.config["top_p"])
    index_NE = index_NE.masked_fill(weight_NE == 0, -1)
    case.check("output.sorted_weights", weight_NE)
    case.check("output.sorted_index", index_NE)
    # Theirs counts choices per token, ours shares of all choices: they differ by the mean number of experts.
    mean_chosen = (index_NE >= 0).sum() / len(index_NE)
    balance_loss = balance([sums_of(RoutingRow(logits[None], probability_NE[None], index_NE[None]))]) * mean_chosen
    case.check("output.balance_loss", balance_loss)
    loss = (weight_NE * case.tensors["cotangent.sorted_weights"]).sum()
    loss = loss + balance_loss * case.tensors["cotangent.balance_loss"]
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.logits", logits.grad)
