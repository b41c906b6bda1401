"""The experts of MoVA's Table 12, counted from their configurations; how far the table's round numbers are from that.

The sizes are those of the released configurations. Closed forms beside the counts are sums over a transformer's parts.
"""

from __future__ import annotations

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import (
    Dinov2TowerSpec,
    ImageTowerSpec,
    OpenCLIPTower,
    Pix2StructTowerSpec,
    PyramidTowerSpec,
    SamTowerSpec,
)
from mmmoe.paths import project_root

GIANT = {
    "model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "image_size": 518,
    "patch_size": 14, "use_swiglu_ffn": True,
}  # fmt: skip
HUGE = {
    "model_type": "sam_vision_model", "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
    "global_attn_indexes": [7, 15, 23, 31],
}  # fmt: skip
BASE = {"model_type": "sam_vision_model"}
LARGE = {
    "model_type": "pix2struct",
    "vision_config": {"hidden_size": 1536, "d_ff": 3968, "num_hidden_layers": 18, "num_attention_heads": 24},
}
DEPLOT = {"model_type": "pix2struct"}
BIOMED = {
    "embed_dim": 512,
    "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "image_size": 224},
}


def block(width, inner, *, bias=True):
    """Parameters of attention and a plain feed-forward block, with their two norms."""
    return 4 * width * width + 2 * width * inner + (9 * width + inner if bias else 2 * width)


def clip():
    patches = 3 * 14 * 14 * 1024
    positions = (24 * 24 + 1) * 1024
    return patches + 1024 + positions + 24 * block(1024, 4096) + 2 * 2 * 1024 + 1024 * 768


def dinov2():
    """SwiGLU of inner width 4096; two scales a block; class and mask tokens."""
    swiglu = 2 * 4096 * 1536 + 2 * 4096 + 4096 * 1536 + 1536
    attention = 4 * (1536 * 1536 + 1536)
    patches = 3 * 14 * 14 * 1536 + 1536
    return patches + (37 * 37 + 1) * 1536 + 2 * 1536 + 40 * (attention + swiglu + 6 * 1536) + 2 * 1536


def sam(width, layers, num_global):
    """Tables of relative positions: 2 x 27 rows in windows of 14, 2 x 127 in the global layers; the neck."""
    tables = ((layers - num_global) * 2 * 27 + num_global * 2 * 127) * (80 if width == 1280 else 64)
    patches, positions = 3 * 16 * 16 * width + width, 64 * 64 * width
    neck = width * 256 + 256 * 256 * 9 + 4 * 256
    return patches + positions + layers * block(width, 4 * width) + tables + neck


def pix2struct(width, inner, layers):
    """No biases but the patches'; gated feed-forward; norms with one vector; a table of rows and one of columns."""
    patches, tables = 768 * width + width, 2 * 4096 * width
    return patches + tables + layers * (4 * width * width + 3 * width * inner + 2 * width) + width


def biomed():
    patches, positions = 3 * 16 * 16 * 768 + 768, (14 * 14 + 1) * 768
    return patches + 768 + positions + 12 * block(768, 3072) + 2 * 768 + 768 * 512


@pytest.mark.parametrize(("spec", "count", "form", "table", "grid", "channels"), [
    (OpenCLIPTower(name="ViT-L-14-336", path=None, image_size=None), 304_293_888, clip(), 304e6, 24, 1024),
    (Dinov2TowerSpec(config=GIANT), 1_136_480_768, dinov2(), 1.1e9, 37, 1536),
    (SamTowerSpec(config=BASE, strides=[512]), 90_850_560, sam(768, 12, 4) + 9 * 256 * 512, 86e6, 32, 512),
    (Pix2StructTowerSpec(config=LARGE), 512_812_032, pix2struct(1536, 3968, 18), 513e6, 45, 1536),
    (Pix2StructTowerSpec(config=DEPLOT), 91_835_904, pix2struct(768, 2048, 12), 92e6, 45, 768),
    (OpenCLIPTower(name="BiomedCLIP", config=BIOMED, path=None, layer=-1, norm=True), 86_191_872, biomed(), 86e6, 14,
     768),
    (SamTowerSpec(config=HUGE), 637_026_048, sam(1280, 32, 4), 632e6, 64, 256),
])  # fmt: skip
def test_parameters_of_the_experts(spec, count, form, table, grid, channels):
    with torch.device("meta"):
        tower = build_tower(spec, meta=True)
    assert sum(parameter.numel() for parameter in tower.parameters()) == count == form
    assert (tower.grid, tower.channels) == ((grid, grid), channels)
    assert count == pytest.approx(table, rel=0.06)


def test_mova_takes_clip_at_672_pixels():
    with torch.device("meta"):
        tower = build_tower(OpenCLIPTower(name="ViT-L-14-336", path=None, image_size=672), meta=True)
    assert (tower.grid, tower.num_tokens) == ((48, 48), 2304)
    assert tower.visual.positional_embedding.shape == (2305, 1024)


def test_the_readmes_declarations_of_towers_are_valid():
    text = (project_root() / "models/README.md").read_text().split("## Towers")[1].split("```yaml")[1].split("```")[0]
    specs = [
        TypeAdapter(ImageTowerSpec | PyramidTowerSpec).validate_python(declared) for declared in yaml.safe_load(text)
    ]
    kinds = ["open_clip", "open_clip", "dinov2", "sam", "pix2struct", "vit_adapter", "simple_pyramid", "onnx"]
    assert [spec.kind for spec in specs] == kinds
    with torch.device("meta"):
        clip_672, biomed_clip = (build_tower(spec, meta=True) for spec in specs[:2])
    assert (clip_672.grid, biomed_clip.grid, biomed_clip.channels) == ((48, 48), (14, 14), 768)
