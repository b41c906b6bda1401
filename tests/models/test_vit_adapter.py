"""CLIP with a ViT-Adapter as a tower: agreement with transformers' CLIP, what trains, sizes, names, refusals."""

from __future__ import annotations

import json
import re

import pytest
import torch
from models_toy import CONFIG
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.engine.groups import freeze
from mmmoe.engine.precision import cast_parameters
from mmmoe.models.build import build_tower
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import build_language
from mmmoe.models.position_tables import resized
from mmmoe.models.spec import ConnectorSpec, ScratchLanguage
from mmmoe.models.towers.spec import ViTAdapterTowerSpec
from mmmoe.models.towers.vit_adapter_attention import DeformableAttention, centres
from mmmoe.models.towers.vit_adapter_names import from_released, own_name
from mmmoe.models.weights import weight_files, weight_problems

VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
CLIP = VISION | {"model_type": "clip_vision_model"}
WHOLE = {"model_type": "clip", "vision_config": VISION, "text_config": {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 10,
}}  # fmt: skip


def tower(**options):
    torch.manual_seed(0)
    return build_tower(ViTAdapterTowerSpec(**({"config": CLIP, "prior_width": 4} | options)))


def shaken(made):
    """Moves every weight, so that nothing hides behind a zero."""
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def saved(folder, *, whole):
    """Saves a random CLIP, as its image encoder alone or with its text half, and returns the encoder."""
    torch.manual_seed(1)
    if whole:
        model = shaken(CLIPModel(CLIPConfig(vision_config=VISION, text_config=WHOLE["text_config"])))
        vision = model.vision_model
    else:
        model = vision = shaken(CLIPVisionModel(CLIPVisionConfig(**VISION)))
    model.save_pretrained(folder)
    return vision.eval()


def clips_tokens(vision, pixels_ICHW):
    """Returns CLIP's last hidden state by hand, its table of positions made larger where the picture is."""
    side = pixels_ICHW.shape[-1] // 4
    embeddings = vision.embeddings
    patches = embeddings.patch_embedding(pixels_ICHW).flatten(2).transpose(1, 2)
    x = torch.cat([embeddings.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    x = vision.pre_layrnorm(x + resized(embeddings.position_embedding.weight, (side, side), prefix=1, aligned=True))
    return vision.encoder(inputs_embeds=x).last_hidden_state


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [None, 24])
def test_a_fresh_adapter_leaves_clips_tokens_as_they_are(whole, size, tmp_path, capfd):
    vision = saved(tmp_path, whole=whole)
    made = tower(path=str(tmp_path), config=WHOLE if whole else None, image_size=size)
    said = capfd.readouterr()
    assert "UNEXPECTED" not in said.err + said.out
    assert "MISSING" not in said.err + said.out
    pixels = torch.randn(2, 3, made.image_size, made.image_size)
    with torch.no_grad():
        tokens, _ = made.split(made(pixels))
        torch.testing.assert_close(tokens, clips_tokens(vision, pixels))
        if size is None:
            torch.testing.assert_close(tokens, vision(pixels).last_hidden_state)


def test_features_are_tokens_and_then_maps_the_largest_first():
    made = shaken(tower(image_size=24))
    assert (made.grid, made.num_patches, made.sides, made.channels) == ((6, 6), 36, (24, 12, 6, 3), 16)
    assert made.num_tokens == 1 + 36 + 576 + 144 + 36 + 9
    features = made(torch.randn(2, *made.input_shape))
    assert features.shape == (2, made.num_tokens, 16)
    tokens, maps = made.split(features)
    assert tokens.shape == (2, 37, 16)
    assert [part.shape[1] for part in maps] == [576, 144, 36, 9]
    assert torch.equal(torch.cat([tokens, *maps], dim=1), features)
    assert made.fit == "stretch"


def test_images_of_a_batch_do_not_mix():
    made = shaken(tower())
    pixels = torch.randn(3, *made.input_shape)
    torch.testing.assert_close(made(pixels), torch.cat([made(one[None]) for one in pixels]))


def test_half_precision_keeps_places_exact_and_results_near():
    made = shaken(tower()).train()
    pixels = torch.randn(2, *made.input_shape)
    exact = made(pixels)
    cast_parameters(made, torch.bfloat16)
    assert made.adapter.place_S2.dtype == torch.float32
    rough = made(pixels)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()


def test_places_are_the_middles_of_cells_in_reading_order():
    assert centres([2, 1]).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75], [0.5, 0.5]]


def test_fresh_attention_means_over_points_in_as_many_directions_as_heads():
    torch.manual_seed(0)
    attention = DeformableAttention(8, [4], heads=4, points=2, inner=8)
    source = torch.randn(1, 16, 8)
    found = attention(torch.randn(1, 1, 8), torch.tensor([[0.375, 0.375]]), source)  # the middle of cell (1, 1)
    value = attention.value_proj(source).view(4, 4, 4, 2)  # row, column, head, channel
    # Right, down, left, up; one and two cells away. What lies outside is zero.
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    cells = [[(1 + k * row, 1 + k * column) for k in (1, 2)] for row, column in steps]
    means = [
        sum((value[r, c, h] for r, c in around if 0 <= r < 4 and 0 <= c < 4), torch.zeros(2)) / 2
        for h, around in enumerate(cells)
    ]
    torch.testing.assert_close(found[0, 0], attention.out_proj(torch.cat(means)))


def model(trains):
    language = build_language(ScratchLanguage(config=CONFIG, tokenizer="none"))
    eyes = shaken(tower())
    made = LlavaMole(eyes, MLPConnector(ConnectorSpec(), eyes.channels, 32, eyes.num_tokens), None, language, 1024)
    freeze(made, trains)
    return made.train()


def loss(made, **media):
    ids = torch.tensor([[1, IMAGE_ID, 5, 6, 7]])
    labels = ids.masked_fill(ids == IMAGE_ID, IGNORE_ID)
    return made(ids, torch.ones_like(ids), labels, **media).nll_B.sum()


@pytest.mark.parametrize("part", ["adapter", "body"])
def test_adapter_and_body_are_told_apart_by_a_pattern(part):
    made = model([f"tower.{part}.*"])
    assert made.tower.is_trained
    loss(made, media={"image": torch.randn(1, 3, 16, 16)}).backward()
    held = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert held == {name for name, _ in made.named_parameters() if name.startswith(f"tower.{part}.")}
    assert {name.split(".")[1] for name, _ in made.named_parameters() if name.startswith("tower.")} == {
        "adapter", "body"
    }  # fmt: skip


def test_a_model_sees_the_same_in_features_as_in_pixels():
    made = model(["connector.*"]).eval()
    pixels = torch.randn(1, 3, 16, 16)
    kept = made.encode("image", pixels)
    assert not kept.requires_grad
    torch.testing.assert_close(loss(made, features={"image": kept}), loss(made, media={"image": pixels}))


def test_a_key_tells_weights_and_size(tmp_path):
    keys = {tower().key, tower(image_size=24).key, tower(prior_width=8).key, shaken(tower()).key}
    assert len(keys) == 3  # the key is that of the weights the tower was built with
    saved(tmp_path, whole=False)
    keys |= {tower(path=str(tmp_path), config=None).key}
    assert len(keys) == 4
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    other = tower(path=str(tmp_path), config=None)
    assert other.mean == (0.5, 0.5, 0.5)
    assert other.key not in keys


@pytest.mark.parametrize(("options", "message"), [
    ({"image_size": 20}, "image_size is 20, but the smallest map has cells of two patches of 4 pixels; give a mul"),
    ({"config": CLIP | {"num_hidden_layers": 6}}, "this CLIP has 6 layers, which 4 interactions do not divide"),
    ({"heads": 3}, "value_ratio 0.5 of 16 channels makes values 8 wide, which 3 heads do not divide"),
    ({"config": {"model_type": "dinov2"}}, "model_type 'dinov2', but clip or clip_vision_model is wanted here"),
])  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tower(**options)


def test_folders_are_checked_without_reading_weights(tmp_path):
    spec = ViTAdapterTowerSpec(path=str(tmp_path))
    assert list(weight_problems(spec)) == [
        f"path: {tmp_path} holds no CLIP model (no config.json); put one there (nothing is downloaded)"
    ]
    saved(tmp_path, whole=True)
    assert list(weight_problems(spec)) == []
    assert [path.name for path in weight_files(spec)] == ["model.safetensors"]
    wider = WHOLE | {"vision_config": VISION | {"hidden_size": 32}}
    assert "config: " in next(weight_problems(ViTAdapterTowerSpec(path=str(tmp_path), config=wider)))


def test_of_a_whole_clip_only_what_is_declared_of_its_image_encoder_is_compared(tmp_path):
    """Published folders hold fields that the library's class has no more; a plan declares sizes."""
    saved(tmp_path, whole=True)
    file = tmp_path / "config.json"
    stated = json.loads(file.read_text())
    stated["vision_config"] |= {"projection_dim": 768, "add_cross_attention": False, "torchscript": False}
    file.write_text(json.dumps(stated))
    config = {"model_type": "clip", "vision_config": VISION}
    assert list(weight_problems(ViTAdapterTowerSpec(path=str(tmp_path), config=config))) == []
    config["vision_config"] = VISION | {"hidden_size": 32}
    (told,) = weight_problems(ViTAdapterTowerSpec(path=str(tmp_path), config=config))
    assert "vision_config.hidden_size: declared 32, found 16" in told
    assert "patch_size" not in told


def test_released_positions_of_another_size_are_interpolated_bicubically():
    table = torch.randn(17, 16)
    state = {"embeddings.position_embedding.weight": table, "adapter_level_embed": torch.zeros(3, 16)}
    state = {f"visual_tokenizer.encoder.base_model.model.vision_model.{name}": x for name, x in state.items()}
    own = from_released(state | {"soi_token": torch.zeros(1)}, (6, 6))
    assert own.keys() == {"body.embeddings.position_embedding.weight", "adapter.prior.level_3C"}
    got = own["body.embeddings.position_embedding.weight"]
    map_1CHW = table[1:].T.reshape(1, 16, 4, 4)
    want = F.interpolate(map_1CHW, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(got, torch.cat([table[:1], want[0].flatten(1).T]))
    with pytest.raises(ValueError, match="no ViT-Adapter among these weights"):
        from_released({"soi_token": torch.zeros(1)}, (6, 6))
    lora = {"adapter_level_embed": torch.zeros(3, 16), "encoder.layers.0.self_attn.q_proj.lora_A.default.weight": table}
    with pytest.raises(ValueError, match="merge it into them first"):
        from_released(lora, (6, 6))


def test_released_names_are_all_ours():
    made = tower()
    names = set(made.state_dict())
    assert own_name("adapter_interactions.3.extra_extractors.1.ffn.dwconv.dwconv.weight") in names
    assert own_name("adapter_interactions.0.injector.gamma") in names
    assert own_name("encoder.layers.3.mlp.fc1.bias") in names


def clip_large(side):
    """Parameters of ViT-L/14 as far as the tower has it: no norm after the last layer, no projection."""
    width, inner = 1024, 4096
    block = 4 * width * width + 2 * width * inner + 9 * width + inner
    return 3 * 14 * 14 * width + width + (side * side + 1) * width + 24 * block + 2 * width


def adapter(width=1024, heads=16, points=4, prior=64):
    """Parameters of the adapter: convolutions, four injectors, six extractors, one transposed convolution."""

    def attention(levels):
        sampled, value = heads * levels * points, width // 2
        return (width + 1) * 3 * sampled + (width + 1) * value + (value + 1) * width

    inner = width // 4
    mlp = (width + 1) * inner + 10 * inner + (inner + 1) * width
    convolutions = [(3, prior), (prior, prior), (prior, prior), (prior, 2 * prior), (2 * prior, 4 * prior)]
    convolutions += [(4 * prior, 4 * prior)]
    spatial = sum(9 * a * b + 2 * b for a, b in convolutions) + sum((c * prior + 1) * width for c in (1, 2, 4, 4))
    injector, extractor = attention(3) + 4 * width + width, attention(1) + 4 * width + 2 * width + mlp
    return spatial + 3 * width + 4 * injector + 6 * extractor + 4 * width * width + width


@pytest.mark.parametrize(("size", "side"), [(None, 16), (448, 32), (896, 64)])
def test_parameters_of_textharmonys_encoder(size, side):
    large = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    with torch.device("meta"):
        made = build_tower(ViTAdapterTowerSpec(config=large, image_size=size), meta=True)
    body, beside = (sum(p.numel() for p in part.parameters()) for part in (made.body, made.adapter))
    assert (body, beside) == (clip_large(side), adapter())
    assert (made.grid, made.sides) == ((side, side), (4 * side, 2 * side, side, side // 2))
    assert beside == 23_228_608
