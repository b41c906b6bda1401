"""From a declaration to a model: one table from family to builder, nothing registers itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from mmmoe.models.adapters import AdapterSpec
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import build_language
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.spec import ModelSpec, OpenCLIPTower, TowerSpec
from mmmoe.models.towers.efficientnet_lite0 import EfficientNetLite0Tower
from mmmoe.models.towers.open_clip import CLIPTower
from mmmoe.models.towers.tower import Tower


def build_model(spec: ModelSpec, seed: int, *, meta: bool = False) -> LlavaMole:
    """Returns the declared model without adapters.

    Args:
        spec: the declaration.
        seed: fresh weights are a pure function of it, part by part.
        meta: build on the meta device from configuration alone: shapes and counts, no weights read.
    """
    with torch.device("meta") if meta else nullcontext():
        return BUILDERS[spec.family](spec, seed, meta)


def add_adapters(model: LlavaMole, specs: list[AdapterSpec], seed: int, place: ExpertPlace = ALONE) -> None:
    """Adds a stage's adapters; their fresh weights are a pure function of the seed and of how many came before."""
    meta = model.device.type == "meta"
    with torch.device("meta") if meta else nullcontext(), _seeded(seed, f"adapters{len(model.adapters)}"):
        model.add_adapters(specs, place)


def build_tower(spec: TowerSpec, *, meta: bool = False) -> Tower:
    """Returns the declared image encoder, frozen."""
    if isinstance(spec, OpenCLIPTower):
        return CLIPTower(spec, meta=meta)
    return EfficientNetLite0Tower(spec, meta=meta)


def _llava_mole(spec: ModelSpec, seed: int, meta: bool) -> LlavaMole:
    with _seeded(seed, "tower"):
        tower = build_tower(spec.tower, meta=meta)
    with _seeded(seed, "language"):
        language = build_language(spec.language, meta=meta)
    config: Any = language.config
    with _seeded(seed, "connector"):
        connector = MLPConnector(spec.connector, tower.channels, config.hidden_size, tower.num_tokens)
        bounds = ImageBounds(config.hidden_size) if spec.image_bounds else None
    max_positions = spec.max_positions or config.max_position_embeddings
    if max_positions > config.max_position_embeddings:
        raise ValueError(
            f"max_positions is {max_positions}, but the language model has {config.max_position_embeddings} positions"
        )
    return LlavaMole(tower, connector, bounds, language, max_positions)


BUILDERS: dict[str, Callable[[ModelSpec, int, bool], LlavaMole]] = {"llava_mole": _llava_mole}


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Draws from a generator of the part's own and leaves the global one as it was."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield
