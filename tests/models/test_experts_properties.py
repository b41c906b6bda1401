"""How to know that routed experts are right: properties of all three levels, whatever the weights are."""

from __future__ import annotations

import copy

import pytest
import torch
from models_toy import lora_spec, randomise, toy_batch, toy_model

from mmmoe.models.lora.block import FFNExperts, RoutedBlock
from mmmoe.models.lora.inject import eject
from mmmoe.models.lora.layer import RoutedLinear
from mmmoe.models.lora.routing import recording
from mmmoe.models.lora.spec import BalanceSpec, ExpertsSpec, RouterSpec

SITES = {
    "linear": ["language.*.q_proj", "language.*.mlp.*_proj"],
    "block": ["language.*.mlp"],
    "ffn": ["language.*.mlp"],
}
SELECTIONS = {
    "top1": RouterSpec(),
    "top1_gated": RouterSpec(selection="top1_gated"),
    "top1_straight_through": RouterSpec(selection="top1_straight_through"),
    "topk": RouterSpec(selection="topk", k=2),
    "top_p": RouterSpec(selection="top_p", p=0.6),
    "dense": RouterSpec(selection="dense"),
    "sample": RouterSpec(selection="topk", k=2, unit="sample"),
}
ADDING_UP = [name for name in SELECTIONS if name != "top1_gated"]
ALL = [
    (level, selection)
    for level in SITES
    for selection in SELECTIONS
    if not (level == "ffn" and selection == "top1_gated")
]
every_kind = pytest.mark.parametrize(("level", "selection"), ALL)


def experts_spec(level, selection, **changes):
    values = {
        "level": level, "sites": SITES[level], "experts": 4, "rank": 4, "alpha": 8, "router": SELECTIONS[selection],
        "balance": BalanceSpec(kind="per_layer", over="micro_batch"),
    }  # fmt: skip
    return ExpertsSpec(**(values | changes))


def toy(level, selection, **changes):
    model = toy_model()
    model.add_adapters([experts_spec(level, selection, **changes)])
    randomise(model)
    return model


def routed_in(model):
    return [m for m in model.modules() if isinstance(m, RoutedLinear | RoutedBlock)]


def stacks_in(layer):
    return [layer.experts] if isinstance(layer, RoutedLinear) else list(layer.experts.values())


def logits_of(model):
    batch = toy_batch()
    batch.pop("labels_BT")
    return model.logits(**batch)


def loss_of(model):
    return model(**toy_batch()).loss(9, 3)


@every_kind
def test_fresh_experts_change_no_bit(level, selection):
    model = toy_model()
    before = logits_of(model)
    model.add_adapters([experts_spec(level, selection)])
    assert torch.equal(logits_of(model), before)
    randomise(model)
    assert not torch.allclose(logits_of(model), before)
    eject(model)
    assert torch.equal(logits_of(model), before)


def like_experts(level):
    sites = SITES[level] if level == "linear" else ["language.*.mlp.*_proj"]
    return lora_spec(sites=sites)


def plain_like(model, level):
    """Returns the toy with plain LoRA that holds the first expert of each stack."""
    plain = toy_model()
    plain.add_adapters([like_experts(level)])
    for name, module in model.named_modules():
        if isinstance(module, RoutedLinear | RoutedBlock):
            stacks = {"": module.experts} if isinstance(module, RoutedLinear) else module.experts
            for part, stack in stacks.items():
                target = plain.get_submodule(f"{name}.{part}_proj.lora" if part else f"{name}.lora")
                target.a_ERD.data, target.b_EDR.data = stack.a_ERD.data[:1].clone(), stack.b_EDR.data[:1].clone()
    return plain


@pytest.mark.parametrize("selection", ["top1", "dense"])
@pytest.mark.parametrize("level", SITES)
def test_one_expert_is_plain_lora(level, selection):
    model = toy(level, selection, experts=1)
    torch.testing.assert_close(logits_of(model), logits_of(plain_like(model, level)), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("selection", ADDING_UP)
@pytest.mark.parametrize("level", SITES)
def test_equal_experts_are_plain_lora_whatever_the_routing(level, selection):
    model = toy(level, selection)
    for layer in routed_in(model):
        for stack in stacks_in(layer):
            for factor in (stack.a_ERD, stack.b_EDR):
                factor.data = factor.data[:1].repeat(4, 1, 1)
    torch.testing.assert_close(logits_of(model), logits_of(plain_like(model, level)), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("level", "selection"), [pair for pair in ALL if pair[1] not in ("dense", "top_p")])
def test_an_expert_that_nobody_chose_gets_zeros_and_no_none(level, selection):
    model = toy(level, selection)
    for layer in routed_in(model):  # the last expert is never the most probable, nor the second
        with torch.no_grad():
            layer.router.weight[-1] = 0.0
            layer.router.bias[-1] = -100.0
    loss_of(model).backward()
    for layer in routed_in(model):
        for stack in stacks_in(layer):
            for factor in (stack.a_ERD, stack.b_EDR):
                assert not factor.grad[-1].any()
                assert factor.grad[:-1].any()


@every_kind
def test_permuting_experts_with_the_routers_rows_changes_nothing(level, selection):
    model = toy(level, selection)
    before, order = logits_of(model), torch.tensor([2, 0, 3, 1])
    for layer in routed_in(model):
        for part in (layer.router.weight, layer.router.bias):
            part.data = part.data[order]
        for stack in stacks_in(layer):
            stack.a_ERD.data, stack.b_EDR.data = stack.a_ERD.data[order], stack.b_EDR.data[order]
    torch.testing.assert_close(logits_of(model), before, atol=3e-6, rtol=1e-5)


@every_kind
def test_every_parameter_gets_a_gradient_from_every_batch(level, selection):
    model = toy(level, selection)
    loss_of(model).backward()
    trained = [(n, p) for n, p in model.named_parameters() if ".experts." in n or ".router." in n]
    assert all(p.grad is not None for _, p in trained)
    assert any(p.grad.any() for n, p in trained if ".router." in n)


@every_kind
def test_checkpointing_changes_no_gradient(level, selection):
    def gradients(enabled):
        model = toy(level, selection).train()
        model.gradient_checkpointing(enabled)
        loss_of(model).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert set(plain) == set(again)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=0, rtol=0)


@pytest.mark.parametrize("selection", ADDING_UP)
def test_a_block_of_experts_is_the_literal_sum_of_blocks(selection):
    block = routed_in(toy("ffn", selection))[0].double()
    assert isinstance(block, FFNExperts)
    x_BTD = torch.randn(2, 11, 32, dtype=torch.float64)
    y_BTD = block(x_BTD)
    rows = torch.einsum("btd->bd", x_BTD) / 11 if selection == "sample" else x_BTD.flatten(0, 1)
    choice = block.router.choose(block.router(rows).softmax(-1))
    gate_NK = torch.ones_like(choice.index_NK) if choice.gate_NK is None else choice.gate_NK

    def whole(expert, x_D):
        def project(name, v):
            stack = block.experts[name]
            return block.projection(name)(v) + stack.scale * stack.b_EDR[expert] @ (stack.a_ERD[expert] @ v)

        return project("down", torch.nn.functional.silu(project("gate", x_D)) * project("up", x_D))

    for n, x_D in enumerate(x_BTD.flatten(0, 1)):
        at = n // 11 if selection == "sample" else n
        want = sum(g * whole(e, x_D) for g, e in zip(gate_NK[at], choice.index_NK[at], strict=True))
        torch.testing.assert_close(y_BTD.flatten(0, 1)[n], want, atol=1e-7, rtol=1e-6)


def test_a_sample_decides_by_its_prompt_alone():
    model = toy("block", "sample")
    batch = toy_batch()
    first = model(**batch)
    batch["input_ids_BT"] = batch["input_ids_BT"].clone()
    batch["input_ids_BT"][0, 7] += 1  # a target: the answer may not choose its expert
    assert torch.equal(model(**batch).routing.load_BLME, first.routing.load_BLME)
    torch.testing.assert_close(model(**batch).routing.probability_BLE, first.routing.probability_BLE)
    assert first.routing.load_BLME.sum((2, 3)).tolist() == [[2 * n] * 2 for n in first.routing.positions_B.tolist()]


def test_a_sample_keeps_its_experts_while_it_answers():
    """Writing with a cache gives what running the whole row anew for each word gives, routed by the prompt alone."""
    model = toy("linear", "sample").eval()
    ids = torch.randint(3, 50, (1, 6))
    answer = model.generate(ids, torch.ones_like(ids, dtype=torch.bool), max_new_tokens=5, eos_id=None)[0]
    row = ids
    for _ in range(5):
        spliced = model._splice(row, torch.ones_like(row, dtype=torch.bool), None, None, None)
        with torch.no_grad(), recording(model.routed, torch.arange(row.shape[1])[None] < 6):
            hidden = model._decode(spliced)
        row = torch.cat([row, model.language.get_output_embeddings()(hidden[:, -1:]).argmax(-1)], dim=1)
    assert row[0, 6:].tolist() == answer


@pytest.mark.parametrize("level", SITES)
def test_layers_may_have_different_numbers_of_experts(level):
    model = toy(level, "topk", experts=[2, 5])
    output = model(**toy_batch())
    assert sorted(set(output.routing.num_experts)) == [2, 5]
    assert output.routing.load_BLME.shape[-1] == 5
    for place, (layer, count) in enumerate(zip(output.routing.layers, output.routing.num_experts, strict=True)):
        assert count == (2, 5)[layer]
        assert not output.routing.load_BLME[:, place, :, count:].any()
    assert output.auxiliary_layers["balance"].shape == (3, 2)


def test_two_routed_adapters_have_terms_of_their_own():
    model = toy_model()
    z = BalanceSpec(kind="per_layer", weight=0.5, z_weight=0.25)
    model.add_adapters([
        experts_spec("linear", "topk", sites=["language.*.q_proj"], balance=z),
        experts_spec("ffn", "topk"),
    ])  # fmt: skip
    randomise(model)
    output = model(**toy_batch())
    assert output.weights == {"balance": 0.5, "z": 0.25, "balance_2": 0.01}
    terms = {name: term.sum() for name, term in output.auxiliary.items()}
    want = output.nll_B.sum() / 9 + (0.5 * terms["balance"] + 0.25 * terms["z"] + 0.01 * terms["balance_2"]) / 3
    torch.testing.assert_close(output.loss(9, 3), want)
    assert len(output.routing.sites) == 4


@pytest.mark.parametrize("selection", ADDING_UP)
@pytest.mark.parametrize("is_autocast", [False, True], ids=["bf16", "autocast"])
def test_fresh_experts_change_no_bit_in_bfloat16(selection, is_autocast):
    """Gates stay in float32: rounded ones would not add up to 1, and multiply the frozen block."""

    def logits(model):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            return logits_of(model if is_autocast else model.bfloat16())

    model = toy_model()
    before = logits(model)
    model.add_adapters([experts_spec("ffn", selection)])
    assert torch.equal(logits(model), before)


def literal(layer):
    """Returns a layer's sum over experts as the papers write it: every expert's own output, weighted at the end."""

    def update(stack, e, v):
        a, b = stack.a_ERD[e].to(v.dtype), stack.b_EDR[e].to(v.dtype)
        return stack.scale * torch.nn.functional.linear(torch.nn.functional.linear(v, a), b)

    def forward(x_BTD):
        choice = layer.tape.decide(layer.router, x_BTD, layer.site)
        experts = layer.router.weight.shape[0]
        gate_NE = torch.zeros(len(choice.index_NK), experts).scatter_add(1, choice.index_NK, choice.gate_NK)
        gates = gate_NE.view(*x_BTD.shape[:2], experts).unbind(-1)
        if isinstance(layer, RoutedLinear):
            y = layer.base(x_BTD)
            for e, gate in enumerate(gates):
                y = y + (gate[..., None] * update(layer.experts, e, x_BTD)).to(y.dtype)
            return y

        def project(name, e, v):
            return layer.projection(name)(v) + update(layer.experts[name], e, v)

        def whole(e):
            return project("down", e, layer.base.act_fn(project("gate", e, x_BTD)) * project("up", e, x_BTD))

        return sum(gate[..., None] * whole(e).float() for e, gate in enumerate(gates)).to(x_BTD.dtype)

    return forward


def loss_curve(level, seed, *, is_low, is_literal=False):
    """Returns the losses of twenty steps from weights drawn by the seed."""
    model = toy(level, "topk", **({"sites": ["language.*.up_proj"]} if level == "linear" else {})).train()
    randomise(model, seed)
    for layer in routed_in(model) if is_literal else ():
        layer.forward = literal(layer)
    trained = [p for n, p in model.named_parameters() if ".experts." in n or ".router." in n]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["linear", "ffn"])
def test_the_loss_curve_in_bfloat16_is_within_the_noise_of_the_literal_form(level):
    """Ours parts from float32 no more than the paper's form in bfloat16 does.

    A choice that flips moves a single curve, either way; so the mean is taken over steps and four starts.
    """
    ours = noise = 0.0
    for seed in range(1, 5):
        exact = loss_curve(level, seed, is_low=False)
        low = loss_curve(level, seed, is_low=True)
        ours += float((low - exact).abs().mean())
        noise += float((loss_curve(level, seed, is_low=True, is_literal=True) - exact).abs().mean())
        assert low[-5:].mean() < low[:5].mean()
    assert 0 < ours <= 1.5 * noise


@pytest.mark.parametrize("level", ["linear", "ffn"])
def test_the_literal_form_is_the_same_function(level):
    model, other = toy(level, "topk"), toy(level, "topk")
    for layer in routed_in(other):
        layer.forward = literal(layer)
    torch.testing.assert_close(logits_of(other), logits_of(model), atol=2e-5, rtol=1e-4)


def test_a_copy_computes_the_same():
    model = toy("ffn", "topk")
    assert torch.equal(logits_of(copy.deepcopy(model)), logits_of(model))
