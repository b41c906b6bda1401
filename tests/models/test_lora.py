"""Adapters: initial values, choices, injection by pattern, the balance loss."""

from __future__ import annotations

import math

import pytest
import torch
from models_toy import lora_spec, mole_spec, toy_batch, toy_model, toy_mole

from mmmoe.models.keys import canonical
from mmmoe.models.lora.balance import RouterSums, balance_terms
from mmmoe.models.lora.block import ProjectionExperts
from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.layer import LoRALinear
from mmmoe.models.lora.router import Router
from mmmoe.models.lora.spec import BalanceSpec, LoRASpec, RouterSpec


def test_fresh_experts_are_uniform_and_zero():
    torch.manual_seed(0)
    experts = LoRAExperts(3, 100, 20, LoRASpec(sites=["*"], rank=64, alpha=32))
    assert experts.scale == 0.5
    assert experts.a_ERD.abs().max() <= 0.1
    assert experts.a_ERD.abs().max() > 0.099
    assert experts.a_ERD.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert not experts.b_EDR.any()


@pytest.mark.parametrize(
    ("selection", "gate"),
    [("top1", None), ("top1_gated", [0.5, 0.6]), ("top1_straight_through", [1.0, 1.0])],
)
def test_choice_of_the_most_probable(selection, gate):
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], requires_grad=True)
    choice = Router(4, 3, RouterSpec(selection=selection)).choose(probability)
    assert choice.index_NK.tolist() == [[0], [2]]
    if gate is None:
        assert choice.gate_NK is None
    else:
        assert choice.gate_NK[:, 0].tolist() == pytest.approx(gate)
        choice.gate_NK.sum().backward()
        assert probability.grad.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_dense_choice_is_every_expert_by_its_probability():
    probability = torch.tensor([[0.5, 0.3, 0.2]])
    choice = Router(4, 3, RouterSpec(selection="dense")).choose(probability)
    assert choice.index_NK.tolist() == [[0, 1, 2]]
    assert torch.equal(choice.gate_NK, probability)


def test_router_works_in_float32_under_lower_precision():
    router = Router(8, 4, RouterSpec()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(torch.randn(5, 8, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32


def test_injection_changes_what_the_patterns_name_and_nothing_else():
    model = toy_model()
    before = dict(model.named_parameters())
    model.add_adapters([lora_spec(sites=["language.*.q_proj"]), mole_spec(sites=["language.model.layers.1.mlp"])])
    found = {name for name, m in model.named_modules() if isinstance(m, LoRALinear | ProjectionExperts)}
    layers = "language.model.layers"
    assert found == {f"{layers}.0.self_attn.q_proj", f"{layers}.1.self_attn.q_proj", f"{layers}.1.mlp"}
    assert model.routed[0].tape.sites == [f"{layers}.1.mlp"]
    after = {canonical(name): p for name, p in model.named_parameters()}
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(".lora." in name or ".experts." in name or ".router." in name for name in set(after) - set(before))


def test_a_pattern_without_a_match_names_the_nearest():
    model = toy_model()
    with pytest.raises(ValueError, match=r"names no linear layer; the nearest are .*self_attn\.q_proj"):
        model.add_adapters([lora_spec(sites=["language.*.self_attn.query"])])
    with pytest.raises(ValueError, match="names no gated feed-forward block"):
        model.add_adapters([mole_spec(sites=["language.*.self_attn"])])
    assert not any(isinstance(m, LoRALinear | ProjectionExperts) for m in model.modules())


def test_a_site_takes_one_adapter():
    model = toy_mole()
    with pytest.raises(ValueError, match="carries an adapter already"):
        model.add_adapters([lora_spec()])
    with pytest.raises(ValueError, match="carries an adapter already"):
        model.add_adapters([mole_spec()])


def sums(probability_BLE, load_BLE, valid_B):
    """Returns the sums of each of L routers."""
    pairs = zip(probability_BLE.unbind(1), load_BLE.unbind(1), strict=True)
    return [RouterSums(p_BE, load_BE, torch.zeros(len(valid_B)), valid_B) for p_BE, load_BE in pairs]


@pytest.mark.parametrize("kind", ["pooled", "per_layer"])
@pytest.mark.parametrize("over", ["sample", "micro_batch"])
def test_balance_of_even_and_of_collapsed_routing(kind, over):
    spec, valid = BalanceSpec(kind=kind, over=over), torch.tensor([12, 6])
    even = torch.tensor([12.0, 6.0])[:, None, None].expand(2, 5, 3) / 3
    torch.testing.assert_close(balance_terms(sums(even, even, valid), spec)[0], torch.ones(2))
    collapsed = torch.zeros(2, 5, 3)
    collapsed[..., 1] = valid[:, None]
    torch.testing.assert_close(balance_terms(sums(collapsed, collapsed, valid), spec)[0], torch.full((2,), 3.0))


def test_two_of_eight_experts_with_half_the_probability_each_give_four():
    load = torch.zeros(1, 1, 8)
    load[..., 2:4] = 10.0
    term, _ = balance_terms(sums(load / 2, load, torch.tensor([10])), BalanceSpec(kind="per_layer"))
    assert term.tolist() == [4.0]


def test_pooling_lets_layers_make_up_for_one_another():
    load = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    layers = sums(load, load, torch.tensor([4]))
    assert balance_terms(layers, BalanceSpec(kind="pooled"))[0].item() == 1.0
    by_mean, by_layer = balance_terms(layers, BalanceSpec(kind="per_layer"))
    assert by_mean.item() == 2.0
    assert by_layer.tolist() == [[2.0, 2.0]]


def test_over_the_micro_batch_samples_make_up_for_one_another():
    load = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]])
    layers = sums(load, load, torch.tensor([4, 4]))
    assert balance_terms(layers, BalanceSpec(over="sample"))[0].tolist() == [2.0, 2.0]
    assert balance_terms(layers, BalanceSpec(over="micro_batch"))[0].tolist() == [1.0, 1.0]


def test_balance_none_gives_no_term_and_still_tells_the_load():
    output = toy_mole(balance="none", selection="top1_gated")(**toy_batch())
    assert output.auxiliary == {}
    assert output.weights == {}
    assert int(output.routing.load_BLME.sum()) == 2 * (14 + 17 + 7)


def test_dropout_acts_in_training_only():
    model = toy_model()
    model.add_adapters([mole_spec(dropout=0.5)])
    block = model.language.model.layers[0].mlp
    torch.nn.init.normal_(block.experts["gate"].b_EDR)
    x = torch.randn(1, 6, 32)
    model.eval()
    assert torch.equal(block(x), block(x))
    model.train()
    assert not torch.equal(block(x), block(x))
    assert not model.tower.training
