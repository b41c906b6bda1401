"""What trains in a MoVA: all but its experts, in every batch, so that processes stay in step."""

from __future__ import annotations

import pytest
import torch
from models_toy import lora_spec
from mova_toy import MIXED, batch, row, toy_mova


def gradients(model, given, num_targets=3, num_samples=1):
    model.zero_grad(set_to_none=True)
    model(**given).loss(num_targets, num_samples).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_a_mixed_batch_are_the_sum_of_its_rows():
    model = toy_mova().train()
    whole, parts = gradients(model, batch(*MIXED), 21, len(MIXED)), {}
    for one in MIXED:
        for name, gradient in gradients(model, batch(one), 21, len(MIXED)).items():
            parts[name] = parts.get(name, 0.0) + gradient
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=2e-5 * float(gradient.abs().max()) + 1e-6, rtol=1e-4)


@pytest.mark.parametrize("is_text_trained", [False, True])
def test_towers_get_no_gradient_and_all_else_gets_one(is_text_trained):
    model = toy_mova().train()
    model.text.requires_grad_(is_text_trained)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = ("tower.", "vision_experts.", *(() if is_text_trained else ("text.",)))
    assert not any(name.startswith(frozen) for name in wanted)
    assert set(gradients(model, batch(*MIXED))) == wanted
    for rows in (MIXED[:1], MIXED[2:3], MIXED[3:4]):
        found = gradients(model, batch(*rows))
        assert set(found) == wanted
        assert not any(g.any() for n, g in found.items() if n.startswith("text.") or ".gate." in n)
    found = gradients(model, batch(row((0, 1, 1))))
    assert set(found) == wanted
    assert any(found[n].any() for n in wanted if n.startswith("text.")) == is_text_trained
    assert not any(found[n].any() for n in wanted if ".readers.near." in n)
    assert any(found[n].any() for n in wanted if ".readers.far." in n)


@pytest.mark.parametrize("is_text_trained", [False, True])
def test_a_batch_without_images_or_samples_touches_everything_and_moves_only_words(is_text_trained):
    model = toy_mova().train()
    model.add_adapters([lora_spec(rows="routing", sites=["language.*.mlp.up_proj"])])
    model.text.requires_grad_(is_text_trained)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    text_only = gradients(model, batch(row(seed=3), row(seed=4)))
    nobody = {name: value[:0] for name, value in batch(row(seed=3)).items() if value is not None}
    empty = gradients(model, nobody)
    assert set(text_only) == set(empty) == wanted
    assert not any(gradient.any() for gradient in empty.values())
    moved = {name.split(".")[0] for name, gradient in text_only.items() if gradient.any()}
    assert moved == {"language"}


def test_what_stands_in_for_no_image_changes_nothing(monkeypatch):
    model = toy_mova().train()
    given = batch(row(seed=3))
    loss, before = model(**given).nll_B, gradients(model, given)
    blank = type(model).blank
    monkeypatch.setattr(type(model), "blank", lambda self, view: torch.randn_like(blank(self, view)) * 9)
    assert torch.equal(model(**given).nll_B, loss)
    after = gradients(model, given)
    assert all(torch.equal(before[name], after[name]) for name in before)
