"""The multi-image feature synchroniser against recordings of the official code: alone, in language model and U-Net."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmmoe.models.mmfs.attention import MultiImageAttention
from mmmoe.models.mmfs.language import add_synchroniser, visibility
from mmmoe.models.mmfs.spec import SynchroniserSpec, UNetSynchroniserSpec
from mmmoe.models.mmfs.unet import UNetSynchroniser

INNER = {".llama_cross_attn.": ".", ".self_attn.": ".base.self_attn.", ".mlp.": ".base.mlp."}
NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.mark.golden("textharmony/mmfs")
def test_attention_to_several_images(case):
    config = case.config
    sides = [(side, side) for side in config["spatial_shapes"]]
    attention = MultiImageAttention(
        config["d_query"],
        config["d_value"],
        int(config["d_model"] * config["ratio"]),
        sides,
        (config["base"], config["base"]),
        heads=config["n_heads"],
        points=config["n_points"],
        offset_range=3.0,
        max_images=config["max_images"] - 1,
    )
    attention.load_state_dict(case.group("weight"))
    inputs = {name: case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("query", "features")}
    y = attention(inputs["query"], inputs["features"], sides, case.tensors["input.mask"].bool())
    case.check("output.y", y)
    loss = (y * case.tensors["cotangent.y"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)
    parameters = dict(attention.named_parameters())
    for name in case.group("grad_weight"):
        case.check(f"grad_weight.{name}", parameters[name].grad)


def own_name(official, every):
    """Returns our name of one of the official language model's weights."""
    parts = official.split(".")
    if parts[0] != "layers" or int(parts[1]) % every:
        return official
    for old, new in INNER.items():
        official = official.replace(old, new)
    return official.replace(f".{parts[2]}.", f".base.{parts[2]}.") if parts[2] in NORMS else official


@pytest.mark.golden("textharmony/llm_with_mmfs")
def test_language_model_that_sees_images(case):
    config = case.config
    official = case.group("weight")
    llama = LlamaConfig(
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn"],
        num_attention_heads=config["heads"],
        num_hidden_layers=config["layers"],
        vocab_size=len(official["embed_tokens.weight"]),
        rms_norm_eps=config["rms_eps"],
        rope_theta=config["rope_theta"],
    )
    language = LlamaForCausalLM(llama)
    spec = SynchroniserSpec(
        every=config["freq"],
        heads=config["mmfs_heads"],
        points=config["mmfs_points"],
        base_side=config["base_side"],
        max_images=config["max_images"] - 1,
    )
    memory = add_synchroniser(language, spec, config["image_dim"], config["spatial_shapes"])
    names = {name: own_name(name, config["freq"]) for name in official}
    language.model.load_state_dict({own: official[name] for name, own in names.items()})
    inputs = {name: case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("inputs_embeds", "features")}
    mask_BTN = case.tensors["input.cross_attention_mask"].bool()
    first_BN = torch.where(mask_BTN.any(1), mask_BTN.int().argmax(1), -1)
    position_1T = torch.arange(mask_BTN.shape[1])[None]
    assert torch.equal(visibility(first_BN, position_1T), mask_BTN)
    memory.show(inputs["features"], config["spatial_shapes"], first_BN)
    hidden = language.model(
        inputs_embeds=inputs["inputs_embeds"],
        attention_mask=case.tensors["input.attention_mask"],
        position_ids=position_1T,
        use_cache=False,
    ).last_hidden_state
    case.check("output.hidden", hidden)
    loss = (hidden * case.tensors["cotangent.hidden"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)
    parameters = dict(language.model.named_parameters())
    for name in case.group("grad_weight"):
        case.check(f"grad_weight.{name}", parameters[names[name]].grad)


@pytest.mark.golden("textharmony/sequence_preparation")
def test_images_that_a_position_sees(case):
    ids, config = case.tensors["input.text_ids"], case.config["ids"]
    images_B = case.tensors["input.num_image_per_seq"].tolist()
    first_BN = torch.full((len(ids), max(images_B)), -1)
    for row, count in enumerate(images_B):
        first_BN[row, :count] = (ids[row] == config["soi_token_id"]).nonzero()[:, 0] + 1
    position_1T = torch.arange(ids.shape[1])[None]
    begin_BT = torch.where(ids == config["bos_token_id"], position_1T, -1).cummax(1).values
    case.check("output.cross_attention_mask", visibility(first_BN, position_1T, begin_BT).float())


UNET = {"mmfs_down_blocks": "down", "mmfs_mid_block": "mid", "mmfs": "attention", "feat_norm": "map_norm"}


def own_unet_name(official):
    return ".".join(UNET.get(part, part) for part in official.split("."))


class Config:
    """The fields of a U-Net's configuration that its synchroniser reads."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.mark.golden("textharmony/sd_mmfs_net")
def test_readers_beside_a_unet(case):
    config, official = case.config, case.group("weight")
    side = config["spatial_shapes"][0] // config["downsample_factor"]
    spec = UNetSynchroniserSpec(
        heads=config["heads"],
        points=config["n_points"],
        value_width=config["attention_width"],
        offset_sides=tuple(config["spatial_shapes"]),
    )
    unet = Config(block_out_channels=config["block_out_channels"], layers_per_block=config["layers_per_block"])
    net = UNetSynchroniser(spec, unet, config["input_channel"], config["feature_sides"], (side, side))
    names = {name: own_unet_name(name) for name in official if not name.endswith("pos_embed")}
    net.load_state_dict({own: official[name] for name, own in names.items()})
    # The table of places is no weight here; on the finest grid it is the official one.
    torch.testing.assert_close(net.down[0].position_TD, official["mmfs_down_blocks.0.pos_embed"], atol=1e-6, rtol=1e-6)

    inputs = {n: t.clone().requires_grad_() for n, t in case.group("input").items() if n != "mask"}
    skips = [inputs[f"down{number}"] for number in range(len(net.down))]
    maps = [inputs[f"feature{level}"][:, 0].flatten(2).transpose(1, 2) for level in range(config["n_levels"])]
    mid, added = net.add(inputs["sample"], skips, maps, case.tensors["input.mask"][:, 0])
    outputs = {"sample": mid} | {f"down{number}": skip for number, skip in enumerate(added)}
    for name, output in outputs.items():
        case.check(f"output.{name}", output)
    loss = sum((output * case.tensors[f"cotangent.{name}"]).sum() for name, output in outputs.items())
    case.check("output.loss", loss)
    loss.backward()
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)
    parameters = dict(net.named_parameters())
    for name in case.group("grad_weight"):
        case.check(f"grad_weight.{name}", parameters[names[name]].grad)
