"""The MoV-Adapter and the glance that routing takes against recordings of the official code."""

from __future__ import annotations

import math

import pytest
import torch

from mmmoe.config.ids import IMAGE_ID
from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_attention import GridRotary, RotaryAttention
from mmmoe.models.connectors.mov_adapter_downsample import downsampler, glance
from mmmoe.models.connectors.mov_adapter_features import compact
from mmmoe.models.connectors.mov_adapter_names import ANGLES, INSIDE, from_released, own_name
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec
from mmmoe.models.splice import splice


def build(case):
    """Returns our adapter of the recorded sizes with the recorded weights, and its experts' names."""
    config, weights = case.config, case.group("weight")
    grid = (config["grid"], config["grid"])
    channels = {f"expert{number}": width for number, width in enumerate(config["expert_channels"])}
    adapter = MoVAdapter(
        MoVAdapterSpec(layers=config["layers"], top_k=config["topk"]),
        config["base_channels"],
        grid,
        channels,
        dict.fromkeys(channels, grid),
        case.tensors["input.text_feature"].shape[1],
        config["llm_width"],
    )
    if "rotary_theta" in config:
        adapter.rotary = GridRotary(grid, config["rotary_theta"])
    adapter.load_state_dict(from_released(weights, list(channels)))
    return adapter


def leaves(case):
    """Returns the inputs that gradients are recorded of."""
    return {name: case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("features", "text_feature")}


def run(case, adapter, inputs, images=slice(None)):
    """Returns the tokens of some images; experts see only what is routed to them."""
    base, *maps = inputs["features"][images].split([case.config["base_channels"], *case.config["expert_channels"]], -1)
    routing = case.tensors["input.routing"][images]
    experts = compact(dict(zip(adapter.experts, maps, strict=True)), routing)
    return adapter(base, experts, routing, inputs["text_feature"][images])


def check_gradients(case, adapter, inputs):
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)
    parameters = dict(adapter.named_parameters())
    for official in case.group("grad_weight"):
        case.check(f"grad_weight.{official}", parameters[own_name(official, adapter.experts)].grad)


@pytest.mark.golden("mova/adapter_*")
def test_adapter_of_a_batch(case):
    adapter, inputs = build(case).train(), leaves(case)
    tokens = run(case, adapter, inputs)
    case.check("output.tokens", tokens)
    loss = (tokens * case.tensors["cotangent.tokens"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    check_gradients(case, adapter, inputs)
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.golden("mova/adapter_*")
def test_adapter_of_one_image_after_the_other(case):
    adapter, inputs = build(case).eval(), leaves(case)
    single = [run(case, adapter, inputs, slice(i, i + 1)) for i in range(len(inputs["features"]))]
    tokens = torch.cat(single)
    case.check("output.tokens", tokens)
    if "output.tokens_single" in case.tensors:
        case.check("output.tokens_single", tokens)
    (tokens * case.tensors["cotangent.tokens"]).sum().backward()
    for name, tensor in inputs.items():
        case.check(f"grad_input.{name}", tensor.grad)


@pytest.mark.golden("mova/attention_*")
def test_attention(case):
    config, official = case.config, case.group("weight")
    assert config["heads"] * 64 == config["dim"]
    attention = RotaryAttention(config["dim"], config["value_dim"])
    rotary = GridRotary((config["grid"], config["grid"]), **theta(config))
    case.check("output.freqs_cos", rotary.cos_PX)
    case.check("output.freqs_sin", rotary.sin_PX)
    names = {name: own_attention_name(name) for name in official if ANGLES not in f".{name}"}
    attention.load_state_dict({own: official[name] for name, own in names.items()})
    x, value = (case.tensors[f"input.{name}"].clone().requires_grad_() for name in ("x", "value"))
    y = attention(x, value, rotary)
    case.check("output.y", y)
    loss = (y * case.tensors["cotangent.y"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    case.check("grad_input.value", value.grad)
    parameters = dict(attention.named_parameters())
    for name, own in names.items():
        case.check(f"grad_weight.{name}", parameters[own].grad)


def theta(config):
    return {"theta": config["rotary_theta"]} if "rotary_theta" in config else {}


def own_attention_name(official):
    part, kind = official.split(".")
    return f"{INSIDE.get(part, part)}.{kind}"


@pytest.mark.golden("mova/regstage_*")
def test_residual_stages(case):
    side = case.config["grid"] // 2
    stages = downsampler(case.config["channels"], (side, side))
    official = case.group("weight")
    names = {name: name.removeprefix("downsample.") for name in official}
    stages.load_state_dict({own: official[name] for name, own in names.items()})
    x = case.tensors["input.x"].clone().requires_grad_()
    y = stages(x)
    case.check("output.y", y)
    loss = (y * case.tensors["cotangent.y"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.x", x.grad)
    parameters = dict(stages.named_parameters())
    for name, own in names.items():
        case.check(f"grad_weight.{name}", parameters[own].grad)


@pytest.mark.golden("mova/routing_pass_*")
def test_glance_between_the_words(case):
    config = case.config
    ids = case.tensors.get("input.input_ids", torch.tensor([config.get("input_ids", [])]))
    ids = ids.masked_fill(ids == config.get("image_id", IMAGE_ID), IMAGE_ID)
    mask = case.tensors.get("input.attention_mask", torch.ones_like(ids, dtype=torch.bool))
    is_routing = case.tensors.get("input.has_routing", torch.ones(len(ids), dtype=torch.bool))
    tokens = case.tensors["input.image_tokens"].clone().requires_grad_()
    table = case.tensors["weight.embed_tokens.weight"].clone().requires_grad_()
    side = math.isqrt(tokens.shape[1])
    few = glance(tokens, (side, side), config["num_routing_tokens"])
    assert few.shape == (len(tokens), config["num_routing_tokens"], tokens.shape[2])
    items = [few[i] if is_routing[i] else tokens[i] for i in range(len(tokens))]
    embedded = torch.nn.functional.embedding(ids.clamp(min=0), table)
    spliced = splice(embedded, ids, mask, {"image": items}, case.tensors.get("input.labels"))
    case.check("output.inputs_embeds", spliced.embeddings_BTD)
    if "output.labels" in case.tensors:
        case.check("output.labels", spliced.labels_BT)
        case.check("output.attention_mask", spliced.mask_BT)
    loss = (spliced.embeddings_BTD * case.tensors["cotangent.inputs_embeds"]).sum()
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.image_tokens", tokens.grad)
    case.check("grad_weight.embed_tokens.weight", table.grad)
