"""TextHarmony's vision side against recordings of the official code: perceivers, visual tokenizer, ViT-Adapter."""

from __future__ import annotations

import pytest
import torch

from mmmoe.models.connectors import perceiver_names, visual_tokenizer_names
from mmmoe.models.connectors.perceiver import PerceiverResampler
from mmmoe.models.connectors.perceiver_spec import PerceiverSpec
from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec
from mmmoe.models.position_tables import resized, sincos_grid


def leaf(case, name):
    return case.tensors[f"input.{name}"].clone().requires_grad_()


def finish(case, outputs, inputs, module, own_name):
    """Compares outputs, their loss, and the gradient of every input and weight that is recorded."""
    loss = 0.0
    for name, value in outputs.items():
        case.check(f"output.{name}", value)
        loss = loss + (value * case.tensors[f"cotangent.{name}"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)
    parameters = dict(module.named_parameters())
    recorded = case.group("grad_weight")
    for official in recorded:
        case.check(f"grad_weight.{official}", parameters[own_name(official)].grad)
    return {own_name(official) for official in recorded}


@pytest.mark.golden("textharmony/perceiver_*")
@pytest.mark.parametrize("recompute", [False, True])
def test_perceiver(case, recompute):
    config = case.config
    spec = PerceiverSpec(
        queries=config["num_queries"], layers=config["num_hidden_layers"], width=config["hidden_size"],
        heads=config["num_attention_heads"], inner=config["intermediate_size"],
        cross_attention_every=config["cross_attention_frequency"], qk_norm=config["qk_normalization"],
    )  # fmt: skip
    perceiver = PerceiverResampler(spec, config["encoder_hidden_size"])
    perceiver.load_state_dict(perceiver_names.from_released(case.group("weight"), "", spec.queries))
    perceiver.gradient_checkpointing(recompute)
    features = leaf(case, "encoder_hidden_states")
    tokens = perceiver(features, case.tensors.get("input.attention_mask"))
    inputs = {"encoder_hidden_states": features}
    checked = finish(case, {"tokens": tokens}, inputs, perceiver, perceiver_names.own_name)
    assert checked == {name for name, _ in perceiver.named_parameters()}


@pytest.mark.golden("textharmony/visual_tokenizer_after_encoder")
def test_visual_tokenizer(case):
    config = case.config
    perceiver = PerceiverSpec(
        queries=config["num_queries"], layers=config["layers"], width=config["hidden_size"], heads=config["heads"],
        inner=config["ffn"],
    )  # fmt: skip
    spec = VisualTokenizerSpec(perceiver=perceiver, position_grid=config["grid"])
    grid = (config["image_grid"], config["image_grid"])
    tokenizer = VisualTokenizer(spec, config["width"], grid, config["maps"], config["llm_width"])
    torch.testing.assert_close(tokenizer.position_PC, case.tensors["weight.pos_embed"], atol=1e-6, rtol=0)
    tokenizer.load_state_dict(visual_tokenizer_names.from_released(case.group("weight"), perceiver.queries))
    hidden = leaf(case, "last_hidden")
    inputs = {f"map{number}": leaf(case, f"map{number}") for number in range(len(config["maps"]))}
    flat = [map_ICHW.flatten(2).transpose(1, 2) for map_ICHW in inputs.values()]
    tokens, placed = tokenizer(hidden, flat)
    outputs = {
        "vis_embed": tokens,
        # Nothing in TextHarmony reads these: the encoder's patches with their positions.
        "image_embeds": (hidden + tokenizer.token_position())[:, 1:],
        **{name: p.transpose(1, 2).view(inputs[name].shape) for name, p in zip(inputs, placed, strict=True)},
    }
    checked = finish(case, outputs, {"last_hidden": hidden, **inputs}, tokenizer, visual_tokenizer_names.own_name)
    assert checked == {name for name, _ in tokenizer.named_parameters()}


@pytest.mark.golden("textharmony/clip_position_resize")
def test_a_table_of_clip_becomes_larger_with_aligned_corners(case):
    table = case.tensors["input.table"]
    side = case.config["image"] // case.config["patch"]
    case.check("output.table", resized(table, (side, side), prefix=1, aligned=True))
    unaligned = resized(table, (side, side), prefix=1)
    assert (unaligned - case.tensors["output.table"]).abs().max() > 1e-2


def test_sines_and_cosines_of_a_grid_tell_row_and_column():
    table = sincos_grid(3, 8)
    assert table.shape == (9, 8)
    row, column = torch.tensor(2.0), torch.tensor(1.0)
    want = [row.sin(), (row / 100).sin(), row.cos(), (row / 100).cos()]
    want += [column.sin(), (column / 100).sin(), column.cos(), (column / 100).cos()]
    torch.testing.assert_close(table[2 * 3 + 1], torch.stack(want))
