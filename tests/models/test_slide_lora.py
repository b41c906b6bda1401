"""Slide-LoRA in a model: how to know that it is right (TextHarmony sheet, section i, points 1 to 4), and its gates."""

from __future__ import annotations

import copy

import pytest
import torch
from models_toy import lora_spec, randomise, toy_batch, toy_model
from pydantic import ValidationError

from mmmoe.models.lora.inject import eject
from mmmoe.models.lora.slide import SlideGate, SlideLinear
from mmmoe.models.lora.spec import SlideLoRASpec

DRAW, WRITE = 0, 1
TASKS = torch.tensor([DRAW, WRITE, DRAW])
LEARNED = {"gate": "learned", "gate_weight": 0.5}
SOFT = LEARNED | {"mixing": "soft"}
GATES = {"keyword": {}, "learned": LEARNED, "soft": SOFT}
every_gate = pytest.mark.parametrize("gate", GATES)


def slide_spec(**changes):
    values = {"sites": ["language.*.self_attn.*_proj"], "rank": 4, "alpha": 8}
    return SlideLoRASpec(**(values | changes))


def toy(**changes):
    model = toy_model()
    model.add_adapters([slide_spec(**changes)])
    randomise(model)
    if model.slide.router is not None:
        torch.nn.init.normal_(model.slide.router.weight, generator=torch.Generator().manual_seed(5))
    return model


def batch(task_B=TASKS, rows=None):
    """Returns the toy's batch, or some rows of it, with tasks."""
    given = toy_batch() | {"task_B": task_B}
    if rows is not None:
        images = [[0], [1], []]
        given["media"] = {"image": given["media"]["image"][[i for row in rows for i in images[row]]]}
        given |= {name: given[name][rows] for name in ("input_ids_BT", "attention_mask_BT", "labels_BT", "task_B")}
    return given


def logits_of(model, given=None):
    given = dict(given or batch())
    given.pop("labels_BT")
    return model.logits(**given)


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, SlideLinear)]


def gradients(model, given):
    model.zero_grad(set_to_none=True)
    model(**given).loss(9, 3).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_gate
def test_fresh_experts_change_no_bit(gate):
    model = toy_model()
    before = logits_of(model)
    model.add_adapters([slide_spec(**GATES[gate])])
    assert torch.equal(logits_of(model), before)
    randomise(model)
    assert not torch.allclose(logits_of(model), before)
    assert eject(model) == 8
    assert model.slide is None
    assert torch.equal(logits_of(model, batch(task_B=None)), before)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_half_of_a_gate_is_the_tasks_and_half_is_shared(each):
    gate = SlideGate(slide_spec(experts_per_task=each), 4)
    index_BK, gate_BK = gate.hard(TASKS)
    gate_BE = torch.zeros(3, 3 * each).scatter_add(1, index_BK, gate_BK)
    torch.testing.assert_close(gate_BE.sum(1), torch.ones(3))
    assert (gate_BE != 0).sum(1).tolist() == [2 * each] * 3
    assert (gate_BE[:, -each:] > 0).all()
    assert (gate_BE[TASKS == DRAW, :each] > 0).all()
    index_BK, soft_BK = SlideGate(slide_spec(experts_per_task=each, **SOFT), 4).soft(torch.eye(2)[TASKS])
    torch.testing.assert_close(torch.zeros(3, 3 * each).scatter(1, index_BK, soft_BK), gate_BE)


@pytest.mark.parametrize(("task", "idle"), [(DRAW, WRITE), (WRITE, DRAW)])
def test_the_other_tasks_expert_gets_a_gradient_of_zeros(task, idle):
    model = toy()
    model(**batch(torch.full((3,), task))).loss(9, 3).backward()
    for layer in layers_of(model):
        for factor in (layer.experts.a_ERD, layer.experts.b_EDR):
            assert not factor.grad[idle].any()
            assert factor.grad[task].any()
            assert factor.grad[-1].any()


@pytest.mark.parametrize("gate", GATES)
def test_equal_experts_are_one_plain_lora_of_scale_one(gate):
    model, plain = toy(**GATES[gate]), toy_model()
    plain.add_adapters([lora_spec(rank=4, alpha=4)])
    for name, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, SlideLinear)):
        lora = plain.get_submodule(name).lora
        for factor, own in ((layer.experts.a_ERD, lora.a_ERD), (layer.experts.b_EDR, lora.b_EDR)):
            own.data = factor.data[:1].clone()
            factor.data = factor.data[:1].repeat(3, 1, 1)
    torch.testing.assert_close(logits_of(model), logits_of(plain), atol=3e-6, rtol=1e-5)


@every_gate
def test_a_mixed_batch_is_its_samples(gate):
    model = toy(**GATES[gate]).eval()
    together = model(**batch())
    alone = [model(**batch(rows=[row])) for row in range(3)]
    torch.testing.assert_close(together.nll_B, torch.cat([one.nll_B for one in alone]), atol=2e-5, rtol=1e-5)
    other = model(**batch(1 - TASKS))
    assert torch.equal(other.nll_B, together.nll_B) == (gate != "keyword")  # a learned gate asks nobody


def test_only_the_rows_of_a_task_follow_its_expert():
    model = toy().eval()
    before = model(**batch()).nll_B
    with torch.no_grad():
        for layer in layers_of(model):
            layer.experts.b_EDR[WRITE] += 1.0
    assert (model(**batch()).nll_B != before).tolist() == [False, True, False]


def test_the_scale_is_applied_where_it_is_asked_for():
    x = torch.randn(2, 5, 32)

    def update(**changes):
        layer = layers_of(toy(**changes))[0]
        layer.rows.turn(torch.tensor([[0, 2], [1, 2]]), torch.full((2, 2), 0.5))
        return layer(x) - layer.base(x)

    torch.testing.assert_close(update(alpha=64), update(alpha=1), atol=0, rtol=0)
    torch.testing.assert_close(update(alpha=64, scaled=True), 16 * update(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("init", "bound"), [("released", (32 * 16) ** -0.5), ("lora", 32**-0.5)])
def test_fresh_factors(init, bound):
    model = toy_model()
    model.add_adapters([slide_spec(rank=16, init=init)])
    for layer in layers_of(model):
        assert 0.98 * bound < layer.experts.a_ERD.abs().max() <= bound
        assert not layer.experts.b_EDR.any()


def test_every_parameter_gets_a_gradient_from_every_batch():
    for gate in GATES.values():
        for given in (batch(), batch(torch.full((3,), DRAW)), batch(rows=[2]), batch(rows=[])):
            found = gradients(toy(**gate).train(), given)
            trained = {n for n, _ in toy(**gate).named_parameters() if ".experts." in n or ".router." in n}
            assert trained <= set(found)


@every_gate
def test_layers_that_run_again_in_the_backward_pass_see_the_same_rows(gate):
    plain, again = toy(**GATES[gate]).train(), toy(**GATES[gate]).train()
    again.gradient_checkpointing(True)
    want, got = gradients(plain, batch()), gradients(again, batch())
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, atol=0, rtol=0)


def test_a_forward_before_the_backward_of_another_is_told():
    model = toy().train()
    model.gradient_checkpointing(True)
    loss = model(**batch(torch.tensor([0, 1, 0]))).loss(9, 3)
    model(**batch(rows=[0]))
    with pytest.raises(RuntimeError, match="sees 3 rows, its gate was told 1: run a forward's backward before"):
        loss.backward()


@every_gate
@pytest.mark.parametrize("is_autocast", [False, True], ids=["bf16", "autocast"])
def test_bfloat16(gate, is_autocast):
    def logits(model):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            return logits_of(model if is_autocast else model.bfloat16())

    model = toy_model()
    before = logits(model)
    model.add_adapters([slide_spec(**GATES[gate])])
    assert torch.equal(logits(model), before)
    exact, low = logits_of(toy(**GATES[gate])), logits(toy(**GATES[gate]))
    assert (low - exact).abs().max() < 0.05 * exact.abs().max()


@every_gate
def test_a_layer_is_one_graph(gate):
    torch.compiler.reset()
    model = toy(**GATES[gate])
    with torch.no_grad():
        model(**batch())
    layer, x = layers_of(model)[0], torch.randn(3, 9, 32)
    graphs = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(graphs(x), layer(x))


@pytest.mark.slow
@every_gate
def test_a_compiled_training_step_gives_the_same_gradients(gate):
    torch.compiler.reset()
    plain, compiled = (toy(**GATES[gate]).train() for _ in range(2))
    plain(**batch()).loss(9, 3).backward()
    torch.compile(compiled)(**batch()).loss(9, 3).backward()
    for (name, found), wanted in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=1e-4, rtol=1e-3)


def test_rows_that_are_repeated_have_the_experts_of_their_own():
    """As beams are; the release's code refuses more than one sample with beams."""
    model = toy().eval()
    layer, x = layers_of(model)[0], torch.randn(3, 5, 32)
    model.slide.turn(TASKS, x, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(layer(x.repeat_interleave(4, 0)), layer(x).repeat_interleave(4, 0))
    with pytest.raises(RuntimeError, match="sees 4 rows, its gate was told 3"):
        layer(torch.randn(4, 5, 32))
    model.train()
    with pytest.raises(RuntimeError, match="sees 6 rows"):
        layer(x.repeat_interleave(2, 0))


@every_gate
def test_beams_of_several_samples_write_as_those_of_one(gate):
    model = toy(**GATES[gate])
    ids = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(0))
    mask, asked = torch.ones_like(ids, dtype=torch.bool), {"max_new_tokens": 5, "eos_id": None, "beams": 3}
    together = model.generate(ids, mask, task_B=TASKS, **asked)
    alone = [model.generate(ids[i : i + 1], mask[:1], task_B=TASKS[i : i + 1], **asked)[0] for i in range(3)]
    assert together == alone


@pytest.mark.parametrize("task_B", [None, torch.tensor([0, -1, 1])])
def test_a_gate_that_does_not_learn_must_know_the_tasks(task_B):
    for kind in ("keyword", "label"):
        with pytest.raises(ValueError, match=f"gate {kind} must know each sample's task, and row . of 3 has none"):
            toy(gate=kind)(**batch(task_B))
    with pytest.raises(ValueError, match=r"task_B holds \[2\], but the Slide-LoRA has 2 tasks"):
        toy()(**batch(torch.tensor([0, 2, 1])))


def test_a_learned_gates_loss_is_of_known_tasks_alone():
    model = toy(**LEARNED).train()
    output = model(**batch(torch.tensor([0, -1, 1])))
    assert output.weights["gate"] == 0.5
    assert output.auxiliary["gate"][1] == 0
    spliced_B = output.auxiliary_layers["gate"]
    assert torch.equal(spliced_B[:, 0], output.auxiliary["gate"])
    assert (output.auxiliary["gate"][[0, 2]] > 0).all()
    want = output.nll_B.sum() / 9 + 0.5 * output.auxiliary["gate"].sum() / 3
    torch.testing.assert_close(output.loss(9, 3), want)
    assert "gate" not in toy()(**batch()).auxiliary_layers
    assert model(**batch(rows=[])).auxiliary["gate"].shape == (0,)


def test_the_gate_reads_the_words_of_the_prompt():
    model, given = toy(**LEARNED).eval(), batch()
    before = model(**given).auxiliary["gate"]
    for name, changed in (("media", {"image": given["media"]["image"] + 1.0}), ("labels_BT", None)):
        after = model(**(given | {name: changed})).auxiliary["gate"]
        assert torch.equal(after, before) == (name == "media"), name  # without targets the whole row is a prompt
    ids = given["input_ids_BT"].clone()
    ids[0, 7] += 1  # a target
    assert torch.equal(model(**(given | {"input_ids_BT": ids})).auxiliary["gate"], before)


def test_hard_follows_the_label_in_training_and_itself_in_answers():
    model = toy(**LEARNED)
    x, mask = torch.randn(3, 4, 32), torch.ones(3, 4, dtype=torch.bool)
    own = model.slide.logits(x, mask).argmax(1)
    assert torch.equal(model.slide.train().turn(1 - own, x, mask), 1 - own)
    assert torch.equal(model.slide.train().turn(torch.full((3,), -1), x, mask), own)
    assert torch.equal(model.slide.eval().turn(1 - own, x, mask), own)
    assert torch.equal(model.slide.eval().turn(None, x, mask), own)


def test_a_frozen_gates_loss_is_told_and_no_part_of_the_loss():
    model = toy(**LEARNED)
    model.slide.requires_grad_(False)
    output = model(**batch())
    assert "gate" not in output.auxiliary
    assert output.auxiliary_layers["gate"].shape == (3, 1)


def test_who_is_told_tasks_has_them_in_place_of_a_soft_gates_own():
    model = toy(**SOFT)
    gate, x, mask = model.slide.eval(), torch.randn(3, 5, 32), torch.ones(3, 5).bool()
    own = gate.turn(TASKS, x, mask)
    soft_BE = gate.rows._gate_BK
    gate.heeds_tasks = True
    told = torch.tensor([DRAW, WRITE, -1])
    assert torch.equal(gate.turn(told, x, mask), torch.tensor([DRAW, WRITE, int(own[2])]))
    torch.testing.assert_close(gate.rows._gate_BK[:2], torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]))
    assert torch.equal(gate.rows._gate_BK[2], soft_BE[2])


def test_soft_mixing_teaches_the_gate_through_the_answer():
    model = toy(gate="learned", mixing="soft").train()
    output = model(**batch())
    assert "gate" not in output.auxiliary
    output.loss(9, 3).backward()
    assert model.slide.router.weight.grad.any()


@every_gate
def test_a_copy_computes_the_same(gate):
    model = toy(**GATES[gate])
    model(**batch())
    twin = copy.deepcopy(model)
    assert torch.equal(logits_of(twin), logits_of(model))
    assert all(layer.rows is twin.slide.rows for layer in layers_of(twin))


def test_a_model_has_one_gate_and_it_stands_in_the_language_model():
    model = toy()
    with pytest.raises(ValueError, match="carries an adapter already"):
        model.add_adapters([slide_spec()])
    with pytest.raises(ValueError, match="has a Slide-LoRA already"):
        model.add_adapters([slide_spec(sites=["language.*.mlp.*_proj"])])
    with pytest.raises(ValueError, match=r"'connector\.layers\.0' is no part of"):
        toy_model().add_adapters([slide_spec(sites=["connector.layers.0"])])
    with pytest.raises(RuntimeError, match="before its gate was told the batch"):
        layers_of(toy())[0](torch.randn(1, 2, 32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gate": "label", "mixing": "soft"}, "has nothing to learn"),
        ({"gate_weight": 1.0}, "has nothing to learn"),
        ({"gate": "learned"}, "give gate_weight"),
        ({"tasks": 0}, "greater than or equal to 1"),
    ],
)
def test_what_means_nothing_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        slide_spec(**changes)
