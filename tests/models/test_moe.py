"""The sparse feed-forward block: what must hold whatever its weights are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmoe.models.lora.tape import RoutingTape
from mmmoe.models.moe.gate import route
from mmmoe.models.moe.layer import SparseFFN, fill_expert
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.moe.spec import ExpertLoRASpec, GateSpec, MoESpec
from mmmoe.models.moe.upcycle import chosen_layers

WIDTH, INNER = 16, 24
PROJECTIONS = ("gate", "up", "down")


def dense_block() -> SimpleNamespace:
    gate, up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
    return SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=nn.Linear(INNER, WIDTH, bias=False), act_fn=F.silu)


def dense(block, x):
    return block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x))


def sparse(block, experts: int = 4, place: ExpertPlace = ALONE, **fields) -> SparseFFN:
    spec = MoESpec(sites=["*"], experts=["base"] * experts, **fields)
    return SparseFFN(block, spec, RoutingTape(["0"]), 0, place)


def unlike(layer: SparseFFN) -> SparseFFN:
    """The layer with experts that differ."""
    shapes = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    for number in range(layer.num_experts):
        fill_expert(layer, number, {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()})
    return layer


def literal(layer: SparseFFN, x_ND: torch.Tensor) -> torch.Tensor:
    """A loop over tokens and their experts, without LoRA."""
    rows = []
    for x_D in x_ND:
        logits_E = layer.router.weight @ x_D
        top = logits_E.topk(layer.spec.gate.k)
        is_renormalised = layer.spec.gate.weights == "renormalised"
        weights = top.values.softmax(0) if is_renormalised else logits_E.softmax(0)[top.indices]
        row = torch.zeros(WIDTH)
        for weight, e in zip(weights, top.indices, strict=True):
            w = {name: getattr(layer.experts, f"{name}_proj").weight_EOI[e] for name in PROJECTIONS}
            row = row + weight * (w["down"] @ (F.silu(w["gate"] @ x_D) * (w["up"] @ x_D)))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("lora", [None, ExpertLoRASpec(rank=4, alpha=8)])
def test_identical_experts_are_the_dense_block(k: int, lora: ExpertLoRASpec | None) -> None:
    block, x = dense_block(), torch.randn(2, 9, WIDTH)
    balance = {"kind": "per_layer", "weight": 0.01}
    layer = sparse(block, gate=GateSpec(k=k), balance=balance, lora=lora)
    torch.testing.assert_close(layer(x), dense(block, x), atol=1e-6, rtol=1e-5)


def test_the_papers_weights_shrink_the_dense_block() -> None:
    block, x = dense_block(), torch.randn(2, 9, WIDTH)
    layer = sparse(block, gate=GateSpec(k=2, weights="softmax"))
    probability = layer.router(x.view(-1, WIDTH)).softmax(-1).topk(2).values.sum(1).view(2, 9, 1)
    assert probability.max().item() < 0.99
    torch.testing.assert_close(layer(x), dense(block, x) * probability, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weights", ["renormalised", "softmax"])
@pytest.mark.parametrize("k", [2, 3])
def test_values_and_gradients_are_those_of_a_literal_loop(weights: str, k: int) -> None:
    layer, x = unlike(sparse(dense_block(), gate=GateSpec(k=k, weights=weights))), torch.randn(1, 11, WIDTH)
    grads = []
    for forward in (layer, lambda x_BTD: literal(layer, x_BTD[0])[None]):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        (forward(leaf) * torch.linspace(-1, 1, WIDTH)).sum().backward()
        grads.append([leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_experts_nobody_chose_get_gradients_of_zero() -> None:
    layer = unlike(sparse(dense_block(), gate=GateSpec(k=1, weights="softmax"), lora=ExpertLoRASpec(rank=2, alpha=2)))
    layer.router.weight.data.zero_()  # ties go to the first expert
    layer(torch.randn(1, 5, WIDTH)).sum().backward()
    for name, parameter in layer.experts.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad[1:].any(), name
    assert layer.experts.gate_proj.weight_EOI.grad[0].any()


@pytest.mark.parametrize("drop", ["position", "choice", "probability"])
def test_a_token_whose_logits_hold_a_nan_has_no_gates_that_are_numbers_dropped_or_not(drop) -> None:
    logits_NE = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    logits_NE[::3, 1] = torch.nan
    chosen = route(logits_NE, GateSpec(k=2, capacity_factor=0.5, drop=drop, min_capacity=1))
    assert (chosen.inverse_S.view(12, 2)[::3] < 0).any(), "some are dropped"
    assert chosen.gate_NK.isnan().all(1).tolist() == [token % 3 == 0 for token in range(12)]
    assert not chosen.gate_NK[1::3].isnan().any()


def test_permuting_experts_with_the_routers_rows_changes_nothing() -> None:
    layer, x, order = unlike(sparse(dense_block())), torch.randn(1, 7, WIDTH), torch.tensor([2, 0, 3, 1])
    before = layer(x)
    layer.router.weight.data = layer.router.weight.data[order]
    for name in PROJECTIONS:
        linear = getattr(layer.experts, f"{name}_proj")
        linear.weight_EOI.data = linear.weight_EOI.data[order]
    torch.testing.assert_close(layer(x), before, atol=1e-6, rtol=1e-5)


def test_every_token_is_served_without_a_capacity_and_dropped_beyond_one() -> None:
    x = torch.randn(1, 40, WIDTH)
    layer = unlike(sparse(dense_block()))
    with layer.tape.recording() as rows:
        layer(x)
    assert rows[0].index_BTK.shape == (1, 40, 2)
    layer = unlike(
        sparse(dense_block(), gate=GateSpec(k=1, weights="softmax", capacity_factor=0.1, min_capacity=3))
    ).train()
    served = layer(x)[0].abs().sum(-1) > 0
    chosen = layer.router(x[0]).argmax(-1)
    for expert in range(4):
        mine = served[chosen == expert]
        assert mine[:3].all()
        assert not mine[3:].any()


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("interval", [0, 2, 4]),
        ("first_half", [0, 1]),
        ("second_half", [2, 3, 4]),
        ([1, 3], [1, 3]),
    ],
)
def test_layers(layers, kept) -> None:
    sites = [f"language.layers.{number}.mlp" for number in range(5)]
    spec = MoESpec(sites=["*"], layers=layers, experts=["base"] * 2)
    assert chosen_layers(sites, spec) == [sites[number] for number in kept]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gate": {"k": 3}, "experts": ["base", "base"]}, "gate.k is 3, but there are 2 experts"),
        ({"gate": {"k": 1}}, "the router would never learn"),
        ({"gate": {"drop": "choice"}}, "no meaning without gate.capacity_factor"),
    ],
)
def test_what_cannot_work_is_refused(fields, said) -> None:
    with pytest.raises(ValidationError, match=said):
        MoESpec.model_validate({"sites": ["*"], "experts": ["base"] * 4} | fields)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers \[9\]: the sites are in layers 0 to 1"):
        chosen_layers(["a.0.mlp", "a.1.mlp"], MoESpec(sites=["*"], layers=[9], experts=["base"] * 2))


def test_shares_of_experts_join_to_the_whole() -> None:
    torch.manual_seed(0)
    whole = sparse(dense_block(), lora=ExpertLoRASpec(rank=2, alpha=2))
    parts = []
    for rank in range(2):
        torch.manual_seed(0)
        parts.append(sparse(dense_block(), place=ExpertPlace(rank, 2), lora=ExpertLoRASpec(rank=2, alpha=2)))
    for name, parameter in whole.experts.named_parameters():
        shares = [dict(part.experts.named_parameters())[name] for part in parts]
        assert all(share.is_expert_share for share in shares)
        assert torch.equal(torch.cat(shares), parameter)
    with pytest.raises(ValueError, match="4 experts cannot be shared by 3 processes"):
        sparse(dense_block(), place=ExpertPlace(0, 3))


def test_recomputation_under_checkpointing_gives_the_same_gradients() -> None:
    """Nobody records in the second run of a layer, and it must save what the first one saved all the same."""
    layer, x = unlike(sparse(dense_block(), lora=ExpertLoRASpec(rank=2, alpha=2))), torch.randn(2, 5, WIDTH)
    grads = []
    for is_recomputed in (False, True):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        with layer.tape.recording() as rows:
            y = checkpoint(layer, leaf, use_reentrant=False) if is_recomputed else layer(leaf)
        (y.square().sum() + rows[0].probability_BTE.square().sum()).backward()
        grads.append([leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)
