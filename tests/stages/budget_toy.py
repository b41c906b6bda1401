"""Features of a toy tower for the tests of the cache's budget; run as a script it is one process of an encoding.

Usage: python -m tests.stages.budget_toy SHARDS CACHE LIMIT_GB SECONDS_A_BATCH
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from mmmoe import dist, env
from mmmoe.data import features as features_module
from mmmoe.data.dataset import Source, with_features
from mmmoe.data.encode import encode_missing
from mmmoe.data.feature_part import part_bytes
from mmmoe.data.pack import pack
from mmmoe.data.shards import ShardSet
from mmmoe.data.transforms import ImageTransform
from mmmoe.stages.feature_budget import GB, make_room

TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch")
TOKENS, CHANNELS = 4, 3
PART = 3
"""Items of a part here."""
STAGE = SimpleNamespace(name="align")


class Model:
    """Looks at images through one tower, or two."""

    frames = 0

    def __init__(self, *keys: str) -> None:
        self.towers = {("image" if n == 0 else f"image.{n}"): key for n, key in enumerate(keys)}

    def tower_of(self, view):
        return SimpleNamespace(key=self.towers[view], num_tokens=TOKENS, channels=CHANNELS)


def encode(pixels_ICHW):
    """Four tokens of three channels: the mean colour, doubled from token to token."""
    mean_IC = pixels_ICHW.mean((2, 3))
    return torch.stack([mean_IC * 2**token for token in range(TOKENS)], dim=1)


def write_shards(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes shards of four single-coloured pictures."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = np.full((8, 8, 3), (number * 10 % 256, seed, 7), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
        rows.append({"id": f"{seed}.{number}", "image": f"{number}.png", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    pack(folder / "rows.json", folder / "images", folder / "shards", samples_per_shard=4, domain="")
    return folder / "shards"


def sources_of(shards: Path, cache: Path, model: Model) -> list[Source]:
    return with_features([Source("pictures", "", ShardSet(shards))], cache / "features", model.towers)


def run_of(limit_gb: float | None) -> SimpleNamespace:
    return SimpleNamespace(cache_limit_gb=limit_gb)


def need_gb(items: int) -> float:
    """What so many pictures need under one tower, in shards of four and parts of three."""
    parts = [PART, 1] * (items // 4) + [items % 4] * (items % 4 > 0)
    return sum(part_bytes(part, (TOKENS, CHANNELS)) for part in parts) / GB


def fill(sources: list[Source], rank: int = 0, world: int = 1, seconds: float = 0.0) -> None:
    """Encodes what is missing; takes its time with each batch but the first."""
    batches = []

    def slow(pixels_ICHW):
        say("batch")
        time.sleep(seconds if batches else 0)
        batches.append(len(pixels_ICHW))
        return encode(pixels_ICHW)

    for source in sources:
        for store in source.features.values():
            encode_missing(store, slow, TRANSFORM, batch=2, rank=rank, world=world)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    shards, cache, limit, seconds = sys.argv[1:]
    features_module.PARTS.update(dict.fromkeys(features_module.PARTS, PART))
    torch.set_num_threads(1)
    dist.start(60)
    model = Model("tower")
    sources = sources_of(Path(shards), Path(cache), model)
    try:
        make_room(run_of(float(limit) or None), STAGE, model, sources)
        fill(sources, env.rank(), env.world_size(), float(seconds))
        dist.barrier()
    except ValueError as error:
        say(f"refused: {error}")
    finally:
        dist.stop()


if __name__ == "__main__":
    main()
