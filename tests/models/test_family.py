"""The family: losses however the batch is cut, generation, checkpointing, batches without images or samples."""

from __future__ import annotations

import copy

import pytest
import torch
from models_toy import toy_batch, toy_model, toy_mole

from mmmoe.config.ids import IMAGE_ID
from mmmoe.evaluation.sequences import Row, length_of
from mmmoe.models.lora.routing import recording


def gradients(model, batch, num_targets, num_samples):
    model.zero_grad()
    model(**batch).loss(num_targets, num_samples).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_loss_equals_the_language_models_own():
    model = toy_mole()
    batch = toy_batch()
    output = model(**batch)
    spliced = model._splice(*batch.values(), None)
    own = model.language(
        inputs_embeds=spliced.embeddings_BTD, attention_mask=spliced.mask_BT, labels=spliced.labels_BT
    ).loss
    assert output.num_targets_B.tolist() == [3, 3, 3]
    torch.testing.assert_close(output.nll_B.sum() / 9, own)


def test_shares_of_single_samples_add_up_to_the_batch():
    model = toy_mole(balance="per_layer")
    batch = toy_batch()
    whole = gradients(model, batch, 9, 3)
    parts = None
    images = 0
    for row in range(3):
        one = {name: t[row : row + 1] for name, t in batch.items() if name != "media"}
        used = int((one["input_ids_BT"] == IMAGE_ID).sum())
        one["media"] = {"image": batch["media"]["image"][images : images + used]}
        images += used
        part = gradients(model, one, 9, 3)
        parts = part if parts is None else {n: parts[n] + g for n, g in part.items()}
    assert set(parts) == set(whole)
    for name, gradient in whole.items():
        # Sums of float32 in another order: rounding is relative to the largest entry, not to a cancelled small one.
        torch.testing.assert_close(parts[name], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-6, rtol=1e-4)


def test_features_stand_for_pixels():
    model = toy_mole()
    batch = toy_batch()
    by_pixels = model(**batch)
    features = model.encode("image", batch.pop("media")["image"])
    assert features.shape == (2, 4, 12)
    assert not features.requires_grad
    assert torch.equal(model(**batch, features={"image": features}).nll_B, by_pixels.nll_B)


@pytest.mark.parametrize("selection", ["top1", "dense"])
def test_checkpointing_changes_no_gradient(selection):
    model, batch = toy_mole(selection=selection).train(), toy_batch()
    plain = gradients(model, batch, 9, 3)
    model.gradient_checkpointing(True)
    again = gradients(model, batch, 9, 3)
    model.gradient_checkpointing(False)
    assert set(plain) == set(again)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=0, rtol=0)


@pytest.mark.parametrize("samples", [0, 1])
def test_batches_without_images_touch_every_trained_parameter(samples):
    model = toy_mole()
    batch = toy_batch(lengths=(6,), with_image=(False,))
    batch = {name: t if name == "media" else t[:samples] for name, t in batch.items()}
    model.zero_grad()
    output = model(**batch)
    assert output.nll_B.shape == output.auxiliary["balance"].shape == (samples,)
    output.loss(3, 1).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any(p.grad.any() for n, p in trained.items() if n.startswith(("connector", "bounds")))
    if samples == 0:
        assert not any(p.grad.any() for p in trained.values())


def test_samples_without_targets_have_no_loss_but_a_graph():
    model, batch = toy_mole(), toy_batch()
    batch["labels_BT"][0] = -100
    output = model(**batch)
    assert output.num_targets_B.tolist() == [0, 3, 3]
    assert output.nll_B[0] == 0
    batch["labels_BT"][:] = -100
    nothing = model(**batch).nll_B.sum()
    nothing.backward()
    assert nothing == 0


def greedy(model, batch, row, steps):
    """Continues one unpadded row by running the whole sequence anew for every token."""
    length = int(batch["attention_mask_BT"][row].sum())
    ids = batch["input_ids_BT"][row : row + 1, :length]
    before = int((batch["input_ids_BT"][:row] == IMAGE_ID).sum())
    pixels = batch["media"]["image"][before : before + int((ids == IMAGE_ID).sum())]
    produced = []
    for _ in range(steps):
        token = int(model.logits(ids, torch.ones_like(ids).bool(), {"image": pixels})[0, -1].argmax())
        produced.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return produced


def left_padded(batch):
    lengths = batch["attention_mask_BT"].sum(1)
    ids, mask = batch["input_ids_BT"].clone(), batch["attention_mask_BT"].clone()
    for row, length in enumerate(lengths.tolist()):
        shift = ids.shape[1] - length
        ids[row], mask[row] = ids[row].roll(shift), mask[row].roll(shift)
    return ids, mask


def test_generation_with_cache_equals_running_everything_anew():
    model, batch = toy_mole().train(), toy_batch()
    ids, mask = left_padded(batch)
    rows = model.generate(ids, mask, batch["media"], max_new_tokens=6, eos_id=None)
    assert model.training
    assert not model.tower.training
    model.eval()
    assert rows == [greedy(model, batch, row, 6) for row in range(3)]


def test_generation_stops_at_the_end_token():
    model, batch = toy_mole().eval(), toy_batch()
    ids, mask = left_padded(batch)
    free = model.generate(ids, mask, batch["media"], max_new_tokens=6, eos_id=None)
    end = free[0][2]
    stopped = model.generate(ids, mask, batch["media"], max_new_tokens=6, eos_id=end)
    assert stopped == [row[: row.index(end)] if end in row else row for row in free]


def test_long_rows_are_cut_and_their_lost_targets_not_counted():
    model = toy_model(max_positions=12)
    output = model(**toy_batch())
    # Rows of 14, 17 and 7 positions; the last three ids of each are targets.
    assert output.num_targets_B.tolist() == [1, 0, 3]


def test_a_copy_has_a_tape_of_its_own():
    model = toy_mole()
    twin = copy.deepcopy(model)
    batch = toy_batch()
    with recording(model.routed, torch.ones(1, 1, dtype=torch.bool)) as rows:
        twin(**batch)
    assert rows == [{}]
    assert torch.equal(twin(**batch).nll_B, model(**batch).nll_B)


def test_positions_tell_how_long_a_prompt_becomes():
    """An exam asks before it splices, so that one long question ends nothing."""
    ids, mask = left_padded(toy_batch())
    model = toy_model()
    spliced = model._splice(ids, mask, None, toy_batch()["media"], None, left=True)
    rows = [Row(0, row[own].tolist(), [], {}, {}) for row, own in zip(ids, mask.bool(), strict=True)]
    assert [length_of(row, model.positions) for row in rows] == spliced.mask_BT.sum(1).tolist()
    assert int(spliced.mask_BT.sum(1).max()) == 17


def test_prompts_that_do_not_fit_are_refused():
    ids, mask = left_padded(toy_batch())
    with pytest.raises(ValueError, match="a prompt of 17 positions is longer than the model's 12"):
        toy_model(max_positions=12).generate(ids, mask, toy_batch()["media"], max_new_tokens=1, eos_id=None)


@pytest.mark.parametrize("selection", ["top1", "top1_gated", "dense"])
def test_bfloat16_stays_near_float32(selection):
    model, batch = toy_mole(selection=selection), toy_batch()
    exact = model(**batch)
    low = copy.deepcopy(model).bfloat16()
    output = low(**batch)
    output.loss(9, 3).backward()
    assert output.nll_B.dtype == output.auxiliary["balance"].dtype == torch.float32
    torch.testing.assert_close(output.nll_B, exact.nll_B, rtol=0.05, atol=0.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in low.parameters() if p.requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch)
        torch.testing.assert_close(mixed.nll_B, exact.nll_B, rtol=0.05, atol=0.0)
        mixed.loss(9, 3).backward()
