"""What TextHarmony's image decoder reads, and which images count, against recordings of the official code."""

from __future__ import annotations

import pytest
import torch

from mmmoe.models.drawing import Placed, maps_before
from mmmoe.models.image_decoder.context import ContextProjection, reversed_context
from mmmoe.models.image_decoder.masking import image_loss


def images_in(case):
    """Returns row, beginning of the sequence and start-of-image position of each image."""
    row, last = (case.tensors["input.text_ids"] == case.config["ids"]["soi_token_id"]).nonzero(as_tuple=True)
    return row, case.tensors["input.nearest_bos_idxs"], last


@pytest.mark.golden("textharmony/sequence_preparation")
def test_context_features(case):
    projection = ContextProjection(case.config["D"])
    weights = case.group("weight")
    projection.projection.load_state_dict({name: weights[f"context_feat_proj.{name}"] for name in ("weight", "bias")})
    hidden = case.tensors["input.llm_hidden"].clone().requires_grad_()
    row, first, last = images_in(case)
    context, mask = reversed_context(hidden, row, first, last)
    features = projection(context)
    case.check("output.context_features", features)
    case.check("output.context_mask", mask)
    whole, whole_mask = reversed_context(hidden, row, torch.zeros_like(last), last)
    case.check("output.context_features_from_row_start", projection(whole))
    case.check("output.context_mask_from_row_start", whole_mask)
    (features * case.tensors["cotangent.context_features"]).sum().backward()
    case.check("grad_input.llm_hidden", hidden.grad)
    for name in ("weight", "bias"):
        case.check(f"grad_weight.context_feat_proj.{name}", getattr(projection.projection, name).grad)


@pytest.mark.golden("textharmony/sequence_preparation")
def test_gradients_of_all_that_is_prepared_of_the_maps(case):
    """The recorded gradient is that of the maps for the language model and for the image decoder together."""
    sides, llm_sides = case.config["map_sides"], case.config["llm_map_sides"]
    maps = [case.tensors[f"input.map{level}"].clone().requires_grad_() for level in range(len(sides))]
    flat = [level.flatten(2).transpose(1, 2) for level in maps]
    row, _, last = images_in(case)
    found = maps_before(flat, Placed(row, last, torch.arange(len(row))).before())
    has_one = found.mask_I[:, None, None]
    loss = sum(
        (level * has_one * case.tensors[f"cotangent.previous_image_map{number}"][:, 0].flatten(2).transpose(1, 2)).sum()
        for number, level in enumerate(found.maps)
    )
    read = torch.cat([level for level, side in zip(flat, sides, strict=True) if side in llm_sides], dim=1)
    place = torch.cat([torch.arange(int(count)) for count in case.tensors["input.num_image_per_seq"]])
    loss = loss + (read * case.tensors["cotangent.llm_image_features"][row, place]).sum()
    loss.backward()
    for number, level in enumerate(maps):
        case.check(f"grad_input.map{number}", level.grad)


@pytest.mark.golden("textharmony/image_loss_masking")
def test_which_images_count(case):
    assert case.config["unconditional_probability"] == 0
    error = case.tensors["input.loss_map"].clone().requires_grad_()
    mask = case.tensors["input.context_mask"]
    plain = image_loss(error, mask)
    weighted = image_loss(error, mask, case.tensors["input.image_loss_mask"])
    assert plain.shape == (len(error),)
    case.check("output.loss_with_image_mask", weighted.mean())
    cotangents = case.group("cotangent")
    total = plain.mean() * cotangents["loss"] + weighted.mean() * cotangents["loss_with_image_mask"]
    case.check("output.loss", total)  # in every recording the name of the weighted sum; it took the plain loss's place
    total.backward()
    case.check("grad_input.loss_map", error.grad)
