"""Features of a pyramid kept on disk are what the tower gives: tokens and every map."""

from __future__ import annotations

import pytest
import torch

from mmmoe.data.encode import encode_missing
from mmmoe.data.features import FeatureStore
from mmmoe.data.shards import ShardSet
from mmmoe.data.transforms import ImageTransform
from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import ViTAdapterTowerSpec

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    made = build_tower(ViTAdapterTowerSpec(config=CLIP, prior_width=4))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def test_kept_features_are_the_towers(packed, tower, tmp_path):
    shards = ShardSet(packed)
    transform = ImageTransform(tower.image_size, tower.mean, tower.std, tower.fit)
    store = FeatureStore(tmp_path, tower.key, shards)
    assert encode_missing(store, tower.encode, transform, batch=3) == 20
    for index in range(len(shards)):
        shard, _ = shards.locate(index)
        first = shards.entry(index).first["image"]
        for number, image in enumerate(shards.record(index).media.get("image", ())):
            kept = store.get(shard, first + number)
            made = tower.encode(transform(image)[None])[0]
            assert kept.shape == (tower.num_tokens, tower.channels)
            torch.testing.assert_close(kept.float(), made, atol=1e-4, rtol=1e-3)  # kept in half precision
            tokens, maps = tower.split(kept[None])
            wanted_tokens, wanted = tower.split(made[None])
            assert [part.shape for part in (tokens, *maps)] == [part.shape for part in (wanted_tokens, *wanted)]
