"""Adapters for routing passes (MoVA's first version): they change those rows, and of answers not one bit."""

from __future__ import annotations

import pytest
import torch
from models_toy import lora_spec, mole_spec, randomise, toy_model
from mova_toy import GLANCE, MIXED, batch, row, toy_mova

from mmmoe.models.lora.inject import eject
from mmmoe.models.lora.switch import RowSwitch

PASSES = [0, 5]
"""Rows of MIXED that are routing passes."""
SITES = ["language.*.self_attn.*_proj", "language.*.mlp.*_proj"]


ANSWERS = [at for at in range(len(MIXED)) if at not in PASSES]


def with_lora(rows="routing", **changes):
    model = toy_mova()
    model.add_adapters([lora_spec(rows=rows, sites=SITES, **changes)])
    randomise(model)
    return model


def rows_that_differ(a, b):
    return (a != b).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("is_training", [False, True])
def test_only_routing_passes_are_changed(is_training):
    plain, model, given = toy_mova().train(is_training), with_lora().train(is_training), batch(*MIXED)
    assert rows_that_differ(model(**given).nll_B, plain(**given).nll_B) == PASSES
    logits = (model.logits(**_without_labels(given)) != plain.logits(**_without_labels(given))).flatten(1).any(1)
    assert logits.nonzero()[:, 0].tolist() == PASSES
    answers = batch(*(one for at, one in enumerate(MIXED) if at not in PASSES))
    assert torch.equal(model(**answers).nll_B, plain(**answers).nll_B)


def _without_labels(given):
    return {name: value for name, value in given.items() if name != "labels_BT"}


def test_what_is_written_changes_in_routing_passes_only():
    plain, model = toy_mova(), with_lora()
    given = batch(*MIXED, left=True)
    before, after = (m.generate(**given, max_new_tokens=6, eos_id=None) for m in (plain, model))
    assert [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == PASSES
    alone = [model.generate(**batch(one, left=True), max_new_tokens=6, eos_id=None)[0] for one in MIXED]
    assert after == alone


def gradients(model, given):
    model.zero_grad(set_to_none=True)
    model(**given).loss(21, len(given["input_ids_BT"])).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_training", [False, True])
def test_an_adapter_for_answers_changes_all_but_routing_passes(is_training):
    plain, model, given = toy_mova().train(is_training), with_lora("answers").train(is_training), batch(*MIXED)
    assert rows_that_differ(model(**given).nll_B, plain(**given).nll_B) == ANSWERS
    logits = (model.logits(**_without_labels(given)) != plain.logits(**_without_labels(given))).flatten(1).any(1)
    assert logits.nonzero()[:, 0].tolist() == ANSWERS
    passes = batch(*(MIXED[at] for at in PASSES))
    assert torch.equal(model(**passes).nll_B, plain(**passes).nll_B)


def test_only_answers_train_an_adapter_for_them():
    model = with_lora("answers").train()
    of_passes, of_all = gradients(model, batch(MIXED[0], MIXED[5])), gradients(model, batch(*MIXED))
    of_answers = gradients(model, batch(*(MIXED[at] for at in ANSWERS)))
    for name in (name for name in of_passes if ".lora." in name):
        assert not of_passes[name].any()
        torch.testing.assert_close(of_all[name], of_answers[name], atol=1e-5, rtol=1e-3)
        assert of_all[name].any()


def test_only_routing_passes_train_it():
    model = with_lora().train()
    of_answers = gradients(model, batch(*MIXED[1:5]))
    lora = {name for name in of_answers if ".lora." in name}
    assert lora == {n for n, _ in model.named_parameters() if ".lora." in n}
    assert not any(of_answers[name].any() for name in lora)
    of_all, of_passes = gradients(model, batch(*MIXED)), gradients(model, batch(MIXED[0], MIXED[5]))
    for name in lora:
        # Each row's share of the loss is its own, so answers beside it change nothing.
        torch.testing.assert_close(of_all[name], of_passes[name], atol=1e-5, rtol=1e-3)
        assert of_all[name].any()


def test_layers_that_run_again_in_the_backward_pass_see_the_same_rows():
    plain, again, given = with_lora().train(), with_lora().train(), batch(*MIXED)
    again.gradient_checkpointing(True)
    assert torch.equal(again(**given).nll_B, plain(**given).nll_B)
    want, got = gradients(plain, given), gradients(again, given)
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5)
    again.gradient_checkpointing(False)


def test_a_forward_before_the_backward_of_another_is_told():
    model = with_lora().train()
    model.gradient_checkpointing(True)
    loss = model(**batch(*MIXED)).loss(21, 7)
    model(**batch(*MIXED[:2]))
    with pytest.raises(RuntimeError, match="sees 7 rows, its model said 2: run a forward's backward before the next"):
        loss.backward()


def test_routed_experts_stand_beside_it():
    model = toy_mova()
    model.add_adapters([lora_spec(rows="routing"), mole_spec()])
    randomise(model)
    plain = toy_mova()
    plain.add_adapters([mole_spec()])
    randomise(plain)
    for name, parameter in model.named_parameters():
        if ".lora." not in name:
            plain.get_parameter(name.replace(".base.", ".", 1) if "self_attn" in name else name).data.copy_(parameter)
    given = batch(*MIXED)
    ours, theirs = model(**given), plain(**given)
    assert rows_that_differ(ours.nll_B, theirs.nll_B) == PASSES
    assert ours.routing.modalities == ("text", "image")


def test_two_images_of_which_one_is_a_glance_make_a_row_a_routing_pass():
    plain, model = toy_mova(), with_lora()
    given = batch(row(GLANCE, (1, 0, 0), seed=2), row((1, 0, 0), seed=3))
    assert rows_that_differ(model(**given).nll_B, plain(**given).nll_B) == [0]


def test_it_can_be_taken_out_again():
    plain, model, given = toy_mova(), with_lora(), batch(*MIXED)
    assert eject(model) == 14
    assert torch.equal(model(**given).nll_B, plain(**given).nll_B)


def test_models_without_routing_passes_and_sites_outside_of_the_language_model_refuse_it():
    with pytest.raises(
        ValueError, match=r"rows: routing needs a model that routes images \(MoVA\), LlavaMole does not"
    ):
        toy_model().add_adapters([lora_spec(rows="routing")])
    with pytest.raises(ValueError, match=r"rows: answers has no rows to tell apart at language\.lm_head"):
        toy_mova().add_adapters([lora_spec(rows="answers", sites=["language.lm_head"])])
    with pytest.raises(ValueError, match=r"'connector\.projector\.layers\.0' is no part of"):
        toy_mova().add_adapters([lora_spec(rows="routing", sites=["connector.projector.layers.0"])])


def test_a_switch_that_nobody_turned_is_off():
    x_BTD = torch.zeros(2, 3, 4)
    switch = RowSwitch()
    assert not switch.gates(x_BTD).any()
    assert switch.gates(x_BTD, "answers").all()
    switch.turn(torch.tensor([False, True]))
    assert switch.gates(x_BTD)[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert switch.gates(x_BTD, "answers")[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    switch.turn(None)
    assert not switch.gates(x_BTD).any()
