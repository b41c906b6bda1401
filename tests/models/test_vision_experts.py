"""DINOv2, SAM, Vary and Pix2Struct as towers: agreement with transformers' whole models, sizes, refusals, keys."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Pix2StructImageProcessor,
    SamConfig,
    SamModel,
)

from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import Dinov2TowerSpec, Pix2StructTowerSpec, SamTowerSpec
from mmmoe.models.weights import weight_files, weight_problems

DINO = {
    "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7, "use_swiglu_ffn": True,
}  # fmt: skip
SAM_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 8,
    "output_channels": 6, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 24, "num_pos_feats": 8,
}  # fmt: skip
SAM = {
    "model_type": "sam", "vision_config": SAM_VISION,
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 48, "patch_size": 8, "image_embedding_size": 6},
    "mask_decoder_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16},
}  # fmt: skip
PIX2STRUCT = {
    "model_type": "pix2struct",
    "vision_config": {
        "hidden_size": 16, "patch_embed_hidden_size": 48, "d_ff": 24, "d_kv": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "seq_len": 12,
    },
    "text_config": {"hidden_size": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 10},
}  # fmt: skip
SPECS = {"dinov2": Dinov2TowerSpec, "sam": SamTowerSpec, "pix2struct": Pix2StructTowerSpec}
CONFIGS = {"dinov2": DINO, "sam": SAM, "pix2struct": PIX2STRUCT}
CLASSES = {
    "dinov2": (Dinov2Model, Dinov2Config), "sam": (SamModel, SamConfig),
    "pix2struct": (Pix2StructForConditionalGeneration, Pix2StructConfig),
}  # fmt: skip
OPTIONS = {"dinov2": {}, "sam": {}, "pix2struct": {"image_size": 20}}


def saved(kind, folder, seed=0):
    """Saves a random model, every weight of a size that matters, and returns it."""
    model_class, config_class = CLASSES[kind]
    fields = {name: value for name, value in CONFIGS[kind].items() if name != "model_type"}
    torch.manual_seed(seed)
    model = model_class(config_class(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("size", "side"), [(None, 4), (42, 6)])
def test_dinov2_equals_transformers_without_its_class_token(size, side, tmp_path):
    model = saved("dinov2", tmp_path)
    tower = build_tower(Dinov2TowerSpec(path=str(tmp_path), image_size=size))
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        whole = model(pixels, output_hidden_states=True)
        assert torch.equal(tower(pixels), whole.last_hidden_state[:, 1:])
        hidden = build_tower(Dinov2TowerSpec(path=str(tmp_path), image_size=size, layer=-2))
        torch.testing.assert_close(hidden(pixels), whole.hidden_states[-2][:, 1:])
    assert (tower.grid, tower.num_tokens, tower.channels) == ((side, side), side * side, 16)
    assert hidden.key != tower.key


def test_sam_equals_transformers_in_reading_order(tmp_path, capfd):
    model = saved("sam", tmp_path)
    tower = build_tower(SamTowerSpec(path=str(tmp_path), config=SAM))
    assert "UNEXPECTED" not in capfd.readouterr().err  # the decoder of masks is left out without a word
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        map_ICHW = model.vision_encoder(pixels).last_hidden_state
        features = tower(pixels)
    assert (tower.grid, tower.num_tokens, tower.channels, tower.image_size) == ((6, 6), 36, 6, 48)
    assert torch.equal(features[:, 4 * 6 + 5], map_ICHW[:, :, 4, 5])
    assert torch.equal(features.transpose(1, 2).reshape(map_ICHW.shape), map_ICHW)


def test_vary_is_sam_with_the_folders_own_strides(tmp_path):
    model = saved("sam", tmp_path)
    weight = torch.randn(10, 6, 3, 3)
    stored = load_file(tmp_path / "model.safetensors") | {"strides.0.weight": weight}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tower = build_tower(SamTowerSpec(path=str(tmp_path), strides=[10]))
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        neck = model.vision_encoder(pixels).last_hidden_state
        want = torch.nn.functional.conv2d(neck, weight, stride=2, padding=1)
        assert torch.equal(tower(pixels), want.flatten(2).transpose(1, 2))
    assert (tower.grid, tower.channels, tower.num_tokens) == ((3, 3), 10, 9)
    assert tower.key != build_tower(SamTowerSpec(path=str(tmp_path))).key
    with pytest.raises(ValueError, match=r"lack strides\.1\.weight"):
        build_tower(SamTowerSpec(path=str(tmp_path), strides=[10, 20]))
    with pytest.raises(ValueError, match=r"has shape \(10, 6, 3, 3\), but tower.strides asks for \(12, 6, 3, 3\)"):
        build_tower(SamTowerSpec(path=str(tmp_path), strides=[12]))


@pytest.mark.parametrize(("is_even", "atol"), [(False, 1e-5), (True, 2e-3)])
def test_pix2struct_equals_transformers_processor_and_model(is_even, atol, tmp_path):
    model = saved("pix2struct", tmp_path)
    tower = build_tower(Pix2StructTowerSpec(path=str(tmp_path), image_size=20))
    values = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    if (
        is_even
    ):  # no deviation: the processor divides by its least, 1 / sqrt(1200), which makes rounding 35 times larger
        values[1] = 200
    processor = Pix2StructImageProcessor(patch_size={"height": 4, "width": 4}, max_patches=25, is_vqa=False)
    made = processor(images=[Image.fromarray(one) for one in values], return_tensors="pt")
    mean, std = (torch.tensor(colours)[:, None, None] for colours in (tower.mean, tower.std))
    pixels = (torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255 - mean) / std
    torch.testing.assert_close(tower.patches(pixels), made["flattened_patches"], atol=atol, rtol=1e-5)
    with torch.no_grad():
        want = model.get_encoder()(**made).last_hidden_state
        torch.testing.assert_close(tower(pixels), want, atol=atol, rtol=1e-4)
    assert (tower.grid, tower.num_tokens, tower.channels) == ((5, 5), 25, 16)


def test_the_processors_grid_of_a_720_pixel_image_is_45_by_45():
    """MoVA's size: 2025 patches of 16 pixels come out of the processor, row by row, as the tower makes them."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (720, 720, 3), dtype=np.uint8))
    made = Pix2StructImageProcessor(max_patches=2025, is_vqa=False)(images=image, return_tensors="pt")
    vision = PIX2STRUCT["vision_config"] | {"patch_embed_hidden_size": 768, "seq_len": 4096}
    tower = build_tower(Pix2StructTowerSpec(config=PIX2STRUCT | {"vision_config": vision}))
    mean = torch.tensor(tower.mean)[:, None, None]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean
    assert tower.grid == (45, 45)
    torch.testing.assert_close(tower.patches(pixels[None]), made["flattened_patches"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(SPECS))
def test_experts_are_frozen_deterministic_and_named_by_weights_and_options(kind, tmp_path):
    keys = set()
    for seed in (0, 1):
        saved(kind, tmp_path / str(seed), seed)
        spec = SPECS[kind](path=str(tmp_path / str(seed)), config=CONFIGS[kind], **OPTIONS[kind])
        assert list(weight_problems(spec)) == []
        assert [file.name for file in weight_files(spec)] == ["model.safetensors"]
        tower = build_tower(spec).train()
        keys.add(tower.key)
    pixels = torch.randn(1, *tower.input_shape)
    assert torch.equal(tower(pixels), tower(pixels))
    assert tower(pixels).shape == (1, tower.num_tokens, tower.channels)
    assert tower.grid[0] * tower.grid[1] == tower.num_tokens
    assert not any(module.training for module in tower.modules())
    assert not tower.is_trained
    low = tower.bfloat16()(pixels)
    assert low.dtype == torch.bfloat16
    (tmp_path / "1" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    stated = build_tower(spec)
    if kind != "pix2struct":  # which standardises each image itself
        assert (stated.mean, stated.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        keys.add(stated.key)
    assert len(keys) == (2 if kind == "pix2struct" else 3)


@pytest.mark.parametrize("kind", list(SPECS))
def test_experts_are_planned_from_the_configuration_alone(kind, tmp_path):
    spec = SPECS[kind](path=str(tmp_path / "nothing here"), config=CONFIGS[kind], **OPTIONS[kind])
    with torch.device("meta"):
        planned = build_tower(spec, meta=True)
    real = build_tower(SPECS[kind](config=CONFIGS[kind], **OPTIONS[kind]))
    assert [(n, p.shape) for n, p in planned.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert planned.grid == real.grid
    (problem,) = weight_problems(spec)
    assert problem.startswith("path: ")
    with pytest.raises(ValueError, match="put one there"):
        build_tower(spec)


@pytest.mark.parametrize("kind", list(SPECS))
def test_another_kind_of_model_is_refused(kind, tmp_path):
    other = next(name for name in SPECS if name != kind)
    with pytest.raises(ValueError, match=rf"tower\.config is of model_type '{other}', but {kind}"):
        build_tower(SPECS[kind](config=CONFIGS[other], **OPTIONS[kind]))
    saved(other, tmp_path)
    with pytest.raises(ValueError, match=rf"tower\.path .* is of model_type '{other}', but {kind}"):
        build_tower(SPECS[kind](path=str(tmp_path), **OPTIONS[kind]))


@pytest.mark.parametrize(("spec", "said"), [
    (Dinov2TowerSpec(config=DINO, image_size=30), "image_size is 30, no multiple of this DINOv2's patch of 7"),
    (Dinov2TowerSpec(config=DINO, layer=3), "layer is 3, but this DINOv2 has 3 layers"),
    (SamTowerSpec(config=SAM | {"vision_config": SAM_VISION | {"image_size": 50}}), "image_size 50, no multiple of"),
    (Pix2StructTowerSpec(config=PIX2STRUCT, image_size=22), "image_size is 22, no multiple of the patch of 4"),
    (Pix2StructTowerSpec(config=PIX2STRUCT, image_size=48), "makes 12 rows; this Pix2Struct knows 11"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        build_tower(spec)
