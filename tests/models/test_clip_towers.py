"""CLIP towers beyond their built-in size and architecture: interpolated positions, trunks of timm, refusals."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import OpenCLIPTower
from mmmoe.models.weights import weight_problems

TINY = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3}}
TEXT = {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}
BIOMED = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224
        },
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}  # fmt: skip
"""As BiomedCLIP's open_clip_config.json, with a small trunk."""


def saved(path, config, seed=0):
    """Saves a random CLIP, its class token and positions as large as trained ones, and returns its vision half."""
    torch.manual_seed(seed)
    model = config.get("model_cfg", config)
    clip = open_clip.CLIP(model["embed_dim"], model["vision_cfg"], TEXT).eval()
    for name, parameter in clip.named_parameters():
        if "embedding" in name or "pos_embed" in name:
            nn.init.normal_(parameter)
    torch.save(clip.state_dict(), path)
    return clip.visual


def test_positions_are_interpolated_as_transformers_does(tmp_path):
    visual = saved(tmp_path / "clip.pt", TINY)
    spec = OpenCLIPTower(
        name="tiny", config=TINY, path=str(tmp_path / "clip.pt"), allow_pickle=True, image_size=64, layer=-1
    )
    tower = build_tower(spec)
    assert (tower.image_size, tower.grid, tower.num_tokens) == (64, (8, 8), 64)
    sizes = CLIPVisionConfig(hidden_size=16, num_attention_heads=2, image_size=32, patch_size=8)
    theirs = CLIPVisionEmbeddings(sizes)
    theirs.position_embedding.weight.data.copy_(visual.positional_embedding)
    want = theirs.interpolate_pos_encoding(torch.zeros(1, 65, 16), 64, 64)[0]
    torch.testing.assert_close(tower.visual.positional_embedding, want)
    # The features are those of the same network with that table.
    twin = open_clip.CLIP(8, TINY["vision_cfg"] | {"image_size": 64}, TEXT).visual.eval()
    twin.load_state_dict(visual.state_dict() | {"positional_embedding": want})
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        hidden = twin.transformer(twin._embeds(pixels))
        torch.testing.assert_close(tower(pixels), hidden[:, 1:])
        normed = build_tower(spec.model_copy(update={"norm": True}))
        torch.testing.assert_close(normed(pixels), twin.ln_post(hidden)[:, 1:])
    # open_clip's own rule is another one; the choice is not without effect.
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    resize_pos_embed(state, nn.ModuleDict({"visual": twin}))
    assert (state["visual.positional_embedding"] - want).abs().max() > 0.05


def test_a_table_of_the_right_size_stays_to_the_bit(tmp_path):
    visual = saved(tmp_path / "clip.pt", TINY)
    plain = OpenCLIPTower(name="tiny", config=TINY, path=str(tmp_path / "clip.pt"), allow_pickle=True)
    for spec in (plain, plain.model_copy(update={"image_size": 32})):
        assert torch.equal(build_tower(spec).visual.positional_embedding, visual.positional_embedding)


@pytest.mark.parametrize("size", [224, 64])
def test_a_trunk_of_timm_gives_its_normalised_patch_tokens(size, tmp_path):
    visual = saved(tmp_path / "clip.pt", BIOMED)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(BIOMED))
    spec = OpenCLIPTower(
        name="small biomed", config=str(tmp_path / "open_clip_config.json"), path=str(tmp_path / "clip.pt"),
        allow_pickle=True, layer=-1, norm=True, image_size=None if size == 224 else size,
    )  # fmt: skip
    tower = build_tower(spec)
    side = size // 16
    assert (tower.grid, tower.channels, tower.image_size) == ((side, side), 192, size)
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    if size != 224:
        table_1PC = visual.trunk.pos_embed.detach()
        map_1CHW = table_1PC[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        smaller = nn.functional.interpolate(map_1CHW, (side, side), mode="bicubic").flatten(2).transpose(1, 2)
        visual.set_input_size((size, size))
        visual.trunk.pos_embed.data = torch.cat([table_1PC[:, :1], smaller], 1)
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        # MoVA's copies of timm and open_clip leave out the pooling and the projection after these.
        whole = visual.trunk.forward_features(pixels)
        torch.testing.assert_close(tower(pixels), whole[:, 1:])
        assert whole.shape == (1, side * side + 1, 192)
        plain = build_tower(spec.model_copy(update={"norm": False}))
        torch.testing.assert_close(visual.trunk.norm(plain(pixels)), whole[:, 1:])


def test_a_built_in_name_may_have_a_trunk_of_timm():
    with torch.device("meta"):
        tower = build_tower(OpenCLIPTower(name="ViT-B-16-SigLIP", path=None, layer=-1), meta=True)
    assert (tower.grid, tower.channels) == ((14, 14), 768)


def test_keys_tell_sizes_norms_and_colours_apart(tmp_path):
    saved(tmp_path / "clip.pt", TINY)
    plain = OpenCLIPTower(name="tiny", config=TINY, path=str(tmp_path / "clip.pt"), allow_pickle=True)
    grey = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    changes = [{}, {"image_size": 64}, {"norm": True}, {"layer": -1}, {"config": grey}]
    assert len({build_tower(plain.model_copy(update=change)).key for change in changes}) == 5


def test_refusals(tmp_path):
    saved(tmp_path / "clip.pt", TINY)
    deeper = {"embed_dim": 8, "vision_cfg": TINY["vision_cfg"] | {"layers": 4}}
    remote = {"embed_dim": 8, "vision_cfg": {"timm_model_name": "hf-hub:someone/something"}}
    flat = {"embed_dim": 8, "vision_cfg": {"timm_model_name": "resnet10t"}}
    (tmp_path / "other.json").write_text("{}")
    told = {
        "image_size is 60, no multiple of tiny's patch of 8": {"config": TINY, "image_size": 60},
        "no multiple of tiny's patch of 16": {"config": BIOMED, "image_size": 60},
        "does not fit the declared architecture: 12 tensors": {
            "config": deeper,
            "path": str(tmp_path / "clip.pt"),
            "allow_pickle": True,
        },
        "which timm would download": {"config": remote},
        "resnet10t is no vision transformer": {"config": flat},
        "tower.config no/such.json does not exist": {"config": "no/such.json"},
        "tower.config lacks embed_dim, vision_cfg": {"config": str(tmp_path / "other.json")},
        "not one of open_clip's own vision transformers": {"name": "RN50"},
    }
    for said, fields in told.items():
        with pytest.raises(ValueError, match=said):
            build_tower(OpenCLIPTower(**({"name": "tiny", "path": None} | fields)))


class _Runs:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_is_read_only_where_it_is_allowed_and_runs_nothing(tmp_path, capsys):
    saved(tmp_path / "clip.pt", TINY)
    plain = OpenCLIPTower(name="tiny", config=TINY, path=str(tmp_path / "clip.pt"))
    with pytest.raises(ValueError, match=r"tower\.path .*clip\.pt is a pickle.*allow_pickle: true"):
        build_tower(plain)
    assert [text for text in weight_problems(plain) if "is a pickle" in text]
    torch.save({"visual.x": _Runs()}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="holds no plain tensors"):
        build_tower(plain.model_copy(update={"allow_pickle": True}))
    assert "code ran" not in capsys.readouterr().out
