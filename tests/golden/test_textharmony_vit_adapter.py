"""A CLIP with ViT-Adapter against a recording of the official code: tokens, maps, every gradient of the adapter."""

from __future__ import annotations

import pytest

from mmmoe.engine.groups import freeze
from mmmoe.models.towers.spec import ViTAdapterTowerSpec
from mmmoe.models.towers.vit_adapter import ViTAdapterTower
from mmmoe.models.towers.vit_adapter_names import from_released, own_name


def build(case):
    """Returns our tower of the recorded sizes with the recorded weights; its adapter trains."""
    config = case.config
    clip = {
        "model_type": "clip_vision_model", "hidden_size": config["hidden_size"], "image_size": config["train_image"],
        "intermediate_size": config["ffn"], "num_hidden_layers": config["layers"], "patch_size": config["patch"],
        "num_attention_heads": config["heads"],
    }  # fmt: skip
    spec = ViTAdapterTowerSpec(
        config=clip, image_size=config["image"], points=config["n_points"], value_ratio=config["deform_ratio"],
        inner_ratio=config["cffn_ratio"], prior_width=config["conv_inplane"],
    )  # fmt: skip
    tower = ViTAdapterTower(spec)
    tower.load_state_dict(from_released(case.group("weight"), tower.grid))
    freeze(tower, ["adapter.*"])
    return tower.train()


@pytest.mark.golden("textharmony/vit_adapter")
@pytest.mark.parametrize("recompute", [False, True])
def test_vit_adapter(case, recompute):
    tower = build(case)
    tower.gradient_checkpointing(recompute)
    pixels = case.tensors["input.pixels"].clone().requires_grad_()
    tokens, maps = tower.split(tower.encode(pixels))
    outputs = {"last_hidden": tokens}
    for number, map_ISC in enumerate(maps):
        name = f"map{number}"
        outputs[name] = map_ISC.transpose(1, 2).reshape(case.tensors[f"output.{name}"].shape)
    for name, value in outputs.items():
        case.check(f"output.{name}", value)
    loss = sum((value * case.tensors[f"cotangent.{name}"]).sum() for name, value in outputs.items())
    case.check("output.loss", loss)
    loss.backward()
    case.check("grad_input.pixels", pixels.grad)
    parameters = dict(tower.named_parameters())
    recorded = {own_name(official): official for official in case.group("grad_weight")}
    for own, official in recorded.items():
        case.check(f"grad_weight.{official}", parameters[own].grad)
    assert set(recorded) == {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert set(recorded) == {name for name in parameters if name.startswith("adapter.")}
