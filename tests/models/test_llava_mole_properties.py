"""How to know a LLaVA-MoLE is right: ten properties that hold whatever the weights are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import yaml
from models_toy import lora_spec, mole_spec, randomise, toy_batch, toy_model, toy_mole

from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.counts import parameter_table
from mmmoe.models.lora.block import ProjectionExperts
from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.inject import eject
from mmmoe.models.spec import model_spec

STRATEGIES = ["masked", "permuted", "fused"]
SELECTIONS = ["top1", "top1_gated", "top1_straight_through", "dense"]


def logits_of(model):
    batch = toy_batch()
    batch.pop("labels_BT")
    return model.logits(**batch)


def set_strategy(model, strategy):
    for module in model.modules():
        if isinstance(module, LoRAExperts):
            module.strategy = strategy


def blocks_of(model):
    return [module for module in model.modules() if isinstance(module, ProjectionExperts)]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_1_fresh_adapters_change_no_bit(selection, strategy):
    model = toy_model()
    before = logits_of(model)
    model.add_adapters([lora_spec(), mole_spec(selection=selection)])
    set_strategy(model, strategy)
    assert torch.equal(logits_of(model), before)
    randomise(model)
    assert not torch.allclose(logits_of(model), before)


def test_2_only_the_chosen_expert_contributes():
    model = toy_mole()
    block = blocks_of(model)[0]
    x = torch.randn(1, 20, 32)
    with model.routed[0].tape.recording() as rows:
        y = block(x)
    index = rows[0].index_BTK[0, :, 0]
    assert len(index.unique()) > 1
    for expert in index.unique():
        with torch.no_grad():
            for stack in block.experts.values():
                others = [e for e in range(3) if e != expert]
                stack.a_ERD[others] = stack.a_ERD[others[::-1]].clone()
                stack.b_EDR[others] = torch.randn_like(stack.b_EDR[others])
        here = index == expert
        assert torch.equal(block(x)[0, here], y[0, here])
        randomise(model)


def test_3_one_choice_a_block_and_one_router_a_layer():
    model = toy_mole()
    first, second = blocks_of(model)
    x = torch.randn(1, 50, 32)
    with torch.no_grad():
        # Experts that return fixed vectors show who was asked: gate, up and down must agree.
        for block in (first, second):
            for stack in block.experts.values():
                stack.b_EDR.zero_()
    asked = []
    for stack in first.experts.values():
        stack.register_forward_hook(lambda module, args, output: asked.append(args[2].index_NK))
    with model.routed[0].tape.recording() as rows:
        first(x), second(x)
    assert len(asked) == 3
    assert all(torch.equal(index, asked[0]) for index in asked)
    assert first.router.weight is not second.router.weight
    assert not torch.equal(rows[0].index_BTK, rows[1].index_BTK)
    assert torch.equal(rows[0].index_BTK.view(-1, 1), asked[0])


def test_4_one_expert_is_plain_lora():
    routed, plain = toy_model(), toy_model()
    routed.add_adapters([mole_spec(experts=1)])
    plain.add_adapters([lora_spec(sites=["language.*.mlp.*_proj"])])
    randomise(routed)
    for layer, block in enumerate(blocks_of(routed)):
        for name, stack in block.experts.items():
            target = plain.get_submodule(f"language.model.layers.{layer}.mlp.{name}_proj.lora")
            target.load_state_dict(stack.state_dict())
    assert torch.equal(logits_of(routed), logits_of(plain))
    balance = routed(**toy_batch()).auxiliary["balance"]
    assert torch.equal(balance, torch.ones(3))


@pytest.mark.parametrize("selection", ["top1", "top1_straight_through", "dense"])
def test_5_equal_experts_are_plain_lora_whatever_the_routing(selection):
    model = toy_mole(selection=selection)
    single = toy_mole(experts=1)
    for block, other in zip(blocks_of(model), blocks_of(single), strict=True):
        for name, stack in block.experts.items():
            one = other.experts[name]
            stack.a_ERD.data, stack.b_EDR.data = (t.detach().repeat(3, 1, 1) for t in (one.a_ERD, one.b_EDR))
    model.load_state_dict({name: t for name, t in single.state_dict().items() if ".lora." in name}, strict=False)
    torch.testing.assert_close(logits_of(model), logits_of(single), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_6_equals_evaluating_every_expert_on_every_token(strategy):
    model = toy_mole()
    set_strategy(model, strategy)
    block = blocks_of(model)[1].double()
    x = torch.randn(2, 11, 32, dtype=torch.float64)
    with model.routed[0].tape.recording() as rows:
        y = block(x)

    def every(expert):
        def project(name, v):
            stack = block.experts[name]
            return getattr(block.base, f"{name}_proj")(v) + 2.0 * v @ stack.a_ERD[expert].T @ stack.b_EDR[expert].T

        return project("down", torch.nn.functional.silu(project("gate", x)) * project("up", x))

    chosen = torch.stack([every(e) for e in range(3)], dim=2)
    index = rows[1].index_BTK[..., None].expand(-1, -1, 1, 32)
    torch.testing.assert_close(y, chosen.gather(2, index)[:, :, 0])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_7_the_text_loss_reaches_the_router_only_where_the_gate_is_used(selection):
    model = toy_mole(selection=selection)
    output = model(**toy_batch())
    text = torch.autograd.grad(
        output.nll_B.sum(), [b.router.weight for b in blocks_of(model)], retain_graph=True, allow_unused=True
    )
    # The last block's router can only be reached through its own gate; so can the first, as choices have no gradient.
    for gradient in text:
        assert (gradient is None) if selection == "top1" else (gradient.abs().sum() > 0)
    balance = torch.autograd.grad(output.auxiliary["balance"].sum(), [b.router.weight for b in blocks_of(model)])
    assert all(gradient.abs().sum() > 0 for gradient in balance)


@pytest.mark.parametrize("balance", ["pooled", "per_layer"])
@pytest.mark.parametrize("selection", ["top1", "dense"])
def test_8_padding_changes_nothing(balance, selection):
    model = toy_mole(balance=balance, selection=selection)
    short = toy_batch()
    wide = {name: t if name == "media" else torch.nn.functional.pad(t, (0, 5)) for name, t in short.items()}
    wide["labels_BT"][:, -5:] = -100
    a, b = model(**short), model(**wide)
    torch.testing.assert_close(a.nll_B, b.nll_B, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.auxiliary["balance"], b.auxiliary["balance"])
    assert torch.equal(a.num_targets_B, b.num_targets_B)
    assert torch.equal(a.routing.load_BLME, b.routing.load_BLME)
    assert a.routing.load_BLME.sum((1, 2, 3)).tolist() == [2 * (9 + 5), 2 * (12 + 5), 2 * 7]


@pytest.mark.parametrize(
    ("experts", "rank", "ffn", "attention", "routers"),
    [
        (2, 32, 92_798_976, 33_554_432, 262_208),
        (3, 16, 69_599_232, 16_777_216, 393_312),
        (3, 32, 139_198_464, 33_554_432, 393_312),
        (3, 128, 556_793_856, 134_217_728, 393_312),
    ],
)
def test_9_parameter_counts_of_vicuna_7b(experts, rank, ffn, attention, routers):
    root = Path(__file__).resolve().parents[2]
    spec = model_spec(yaml.safe_load((root / "models/llava_mole/7b.yaml").read_text()))
    model = build_model(spec, seed=0, meta=True)
    add_adapters(model, [lora_spec(rank=rank), mole_spec(experts=experts, rank=rank)], seed=0)
    counted = {row.part: row.total for row in parameter_table(model)}
    assert counted["language"] == 6_738_415_616
    assert counted["connector"] == 20_979_712
    assert (counted["experts"], counted["lora"], counted["routers"]) == (ffn, attention, routers)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_9_plain_lora_counts_of_vicuna_7b():
    root = Path(__file__).resolve().parents[2]
    spec = model_spec(yaml.safe_load((root / "models/llava_mole/7b.yaml").read_text()))
    model = build_model(spec, seed=0, meta=True)
    add_adapters(model, [lora_spec(rank=32, sites=["language.*.self_attn.*_proj", "language.*.mlp.*_proj"])], seed=0)
    assert {row.part: row.total for row in parameter_table(model)}["lora"] == 79_953_920


def test_10_step_time_beside_plain_lora(capsys):
    def seconds(spec):
        model = toy_model()
        model.add_adapters([spec])
        block = model.language.model.layers[0].mlp
        x = torch.randn(4, 512, 32, requires_grad=True)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            block(x).sum().backward()
            times.append(time.perf_counter() - start)
        return min(times)

    ratio = seconds(mole_spec()) / seconds(lora_spec(sites=["language.*.mlp.*_proj"]))
    with capsys.disabled():
        print(f"\nMoLE / plain LoRA, toy block, forward and backward: {ratio:.2f}")  # noqa: T201
    assert ratio > 0


def test_taking_adapters_out_gives_the_base_back():
    model = toy_model()
    names, before = [n for n, _ in model.named_parameters()], logits_of(model)
    model.add_adapters([lora_spec(), mole_spec()])
    randomise(model)
    assert eject(model) == 2 * 4 + 2
    assert [n for n, _ in model.named_parameters()] == names
    assert torch.equal(logits_of(model), before)
