"""What TextHarmony's language model reads and is to say next, against recordings of the official code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.models.drawing import maps_before, number_images, placed
from mmmoe.models.families.text_harmony import IMAGE, TextHarmony
from mmmoe.models.language import build_language
from mmmoe.models.spec import ScratchLanguage


class Given(nn.Module):
    """A tower whose features are the image's tokens already, and a connector that hands them on."""

    is_trained = False

    def __init__(self, tokens):
        super().__init__()
        self.num_tokens = tokens

    def split(self, features):
        return features, []

    def forward(self, tokens, maps):
        return tokens, maps


def family(case):
    """Returns a TextHarmony whose vocabulary ends before the recording's start-of-image token."""
    start = case.config["ids"]["soi_token_id"]
    fields = {
        "model_type": "llama", "vocab_size": start, "hidden_size": case.config["D"], "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    language, given = build_language(ScratchLanguage(config=fields, tokenizer="none")), Given(case.config["nq"])
    decoder = nn.Module()
    decoder.canvas = SimpleNamespace(size=(8, 8))
    model = TextHarmony(given, given, language, None, (), decoder, 64, 1.0)
    weights = case.group("weight")
    with torch.no_grad():
        language.get_input_embeddings().weight.copy_(weights["embed.weight"][:start])
        # Theirs is added to the token's embedding, which does not train; ours is the sum.
        model.start_D.copy_(weights["soi_token"][0] + weights["embed.weight"][start])
    return model


def unspliced(case):
    """Returns the recorded ids and labels with one placeholder in the place of an image's positions."""
    ids, recorded = case.config["ids"], case.tensors["input.text_ids"]
    wanted = torch.cat([torch.full((len(recorded), 1), IGNORE_ID), case.tensors["output.labels"]], dim=1)
    real = case.tensors["input.attention_mask"].bool() & (recorded != ids["image_token_id"])
    longest = int(real.sum(1).max())
    input_ids, labels = torch.full((2, longest), ids["pad_token_id"]), torch.full((2, longest), IGNORE_ID)
    mask = torch.arange(longest) < real.sum(1)[:, None]
    input_ids[mask], labels[mask] = recorded[real], wanted[real]
    is_image = input_ids == ids["soi_token_id"]
    labels[is_image & (labels != IGNORE_ID)] = IMAGE_ID
    return input_ids.masked_fill(is_image, IMAGE_ID), mask, labels


@pytest.mark.golden("textharmony/sequence_preparation")
def test_embeddings_and_labels(case):
    model, tokens = family(case), case.tensors["input.vis_embed"].clone().requires_grad_()
    input_ids, mask, labels = unspliced(case)
    spliced = model._splice(input_ids, mask, labels, None, {"image": tokens})
    real = case.tensors["input.attention_mask"].bool()
    assert torch.equal(spliced.mask_BT, real)
    # Padding is zeros here, and an embedding of its own there; neither is ever read.
    padding = case.tensors["output.mm_embeds"] * ~real[..., None]
    case.check("output.mm_embeds", spliced.embeddings_BTD + padding)
    case.check("output.labels", spliced.labels_BT[:, 1:])
    (spliced.embeddings_BTD * case.tensors["cotangent.mm_embeds"]).sum().backward()
    case.check("grad_input.vis_embed", tokens.grad)
    case.check("grad_weight.soi_token", model.start_D.grad[None])
    grad = model.language.get_input_embeddings().weight.grad
    text = torch.arange(len(grad)) != case.config["ids"]["pad_token_id"]
    want = case.tensors["grad_weight.embed.weight"][: len(grad)]
    torch.testing.assert_close(grad[text], want[text], atol=2e-5, rtol=1e-5)


@pytest.mark.golden("textharmony/sequence_preparation")
def test_maps_that_each_image_and_each_row_sees(case):
    model, sides = family(case), case.config["map_sides"]
    input_ids, mask, labels = unspliced(case)
    spliced = model._splice(input_ids, mask, labels, None, {"image": case.tensors["input.vis_embed"]})
    images = placed(spliced, number_images(input_ids, IMAGE_ID), IMAGE)
    assert torch.bincount(images.row_I).tolist() == case.tensors["input.num_image_per_seq"].tolist()
    maps = [case.tensors[f"input.map{level}"].flatten(2).transpose(1, 2) for level in range(len(sides))]
    previous = maps_before(maps, images.before())
    case.check("output.previous_image_mask", previous.mask_I[:, None])
    for level, side in enumerate(sides):
        # Theirs are zeros where there is no such image; ours are anything behind the mask.
        seen = previous.maps[level].masked_fill(~previous.mask_I[:, None, None], 0.0)
        case.check(f"output.previous_image_map{level}", seen.transpose(1, 2).unflatten(2, (side, side))[:, None])
    of_language = [level for level, side in zip(maps, sides, strict=True) if side in case.config["llm_map_sides"]]
    by_row, column_BN = images.by_row(torch.cat(of_language, dim=1), len(mask))
    case.check("output.llm_image_features", by_row)
    starts = case.tensors["input.text_ids"] == case.config["ids"]["soi_token_id"]
    assert column_BN.tolist() == [[1, -1], starts[1].nonzero()[:, 0].tolist()]
