"""From a declaration to a model: tables from family and tower to builder, nothing registers itself.

What a model is made of is imported where it is built: all families and towers together would load diffusers, timm and
open_clip, too, seconds in which a process that uses none of them would only be waited for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.language import build_language
from mmmoe.models.moe.place import ALONE, ExpertPlace
from mmmoe.models.spec import (
    AudioQFormerSpec,
    FamilySpec,
    LlavaMoleSpec,
    ModelSpec,
    MoVASpec,
    SpeechDecoderSpec,
    TextHarmonySpec,
    UniMoESpec,
)
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.spec import SimplePyramidTowerSpec, TowerSpec


def build_model(spec: ModelSpec, seed: int, *, meta: bool = False) -> SplicedModel:
    """Returns the declared model without adapters.

    Args:
        spec: the declaration.
        seed: fresh weights are a pure function of it, part by part.
        meta: build on the meta device from configuration alone: shapes and counts, no weights read.
    """
    with torch.device("meta") if meta else nullcontext():
        return BUILDERS[spec.family](spec, seed, meta)


def add_adapters(model: SplicedModel, specs: list[AdapterSpec], seed: int, place: ExpertPlace = ALONE) -> None:
    """Adds a stage's adapters; their fresh weights are a pure function of the seed and of how many came before."""
    meta = model.device.type == "meta"
    with torch.device("meta") if meta else nullcontext(), _seeded(seed, f"adapters{len(model.adapters)}"):
        model.add_adapters(specs, place)


def build_tower(spec: TowerSpec, *, meta: bool = False) -> Any:
    """Returns the declared encoder, frozen."""
    tower = resolve_name(f"mmmoe.models.towers.{TOWERS[spec.kind]}")
    if isinstance(spec, SimplePyramidTowerSpec):
        return tower(build_tower(spec.tower, meta=meta))
    return tower(spec, meta=meta)


def _llava_mole(spec: LlavaMoleSpec, seed: int, meta: bool) -> SplicedModel:
    from mmmoe.models.families.llava_mole import LlavaMole

    with _seeded(seed, "tower"):
        tower = build_tower(spec.tower, meta=meta)
    language, max_positions = _language(spec, seed, meta)
    with _seeded(seed, "connector"):
        width = language.config.hidden_size
        connector = MLPConnector(spec.connector, tower.channels, width, tower.num_tokens)
        bounds = ImageBounds(width) if spec.image_bounds else None
    return LlavaMole(tower, connector, bounds, language, max_positions)


def _uni_moe(spec: UniMoESpec, seed: int, meta: bool) -> SplicedModel:
    from mmmoe.models.families.uni_moe import UniMoE

    language, max_positions = _language(spec, seed, meta)
    towers, connectors = dict[str, Any](), dict[str, nn.Module]()
    for kind in ("image", "speech", "audio"):
        part = getattr(spec, kind)
        if part is None:
            continue
        with _seeded(seed, f"tower.{kind}"), _placed(kind):
            towers[kind] = build_tower(part.tower, meta=meta)
        with _seeded(seed, f"connector.{kind}"), _placed(kind):
            connectors[kind] = _connector(part.connector, towers[kind], language.config.hidden_size, meta)
    return UniMoE(towers, connectors, language, max_positions, spec.frames)


def _mova(spec: MoVASpec, seed: int, meta: bool) -> SplicedModel:
    from mmmoe.models.connectors.mov_adapter import MoVAdapter
    from mmmoe.models.families.mova import MoVA
    from mmmoe.models.towers.bert import BertText

    with _seeded(seed, "tower"):
        tower = build_tower(spec.tower, meta=meta)
    taken = sorted(name for name in spec.experts if hasattr(nn.ModuleDict(), name))
    if taken:
        raise ValueError(
            f"experts cannot be called {', '.join(taken)}, as parts of every module are; choose other names"
        )
    experts = dict[str, Any]()
    for name, expert in spec.experts.items():
        with _seeded(seed, f"experts.{name}"), _placed(f"experts.{name}"):
            experts[name] = build_tower(expert.tower, meta=meta)
    with _seeded(seed, "text"):
        text = BertText(spec.text, meta=meta)
    language, max_positions = _language(spec, seed, meta)
    with _seeded(seed, "connector"):
        connector = MoVAdapter(
            spec.connector,
            tower.channels,
            tower.grid,
            {name: expert.channels for name, expert in experts.items()},
            {name: expert.grid for name, expert in experts.items()},
            text.channels,
            language.config.hidden_size,
        )
    return MoVA(tower, experts, text, connector, language, max_positions, spec.routing_tokens)


def _text_harmony(spec: TextHarmonySpec, seed: int, meta: bool) -> SplicedModel:
    from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
    from mmmoe.models.families.text_harmony import TextHarmony
    from mmmoe.models.image_decoder.decoder import ImageDecoder
    from mmmoe.models.mmfs.language import add_synchroniser

    with _seeded(seed, "tower"):
        tower = build_tower(spec.tower, meta=meta)
    language, max_positions = _language(spec, seed, meta)
    width = language.config.hidden_size
    with _seeded(seed, "connector"):
        connector = VisualTokenizer(spec.connector, tower.channels, tower.grid, tower.sides, width)
    memory = None
    if spec.synchroniser is not None:
        with _seeded(seed, "synchroniser"):
            sides = [tower.sides[level] for level in spec.levels]
            memory = add_synchroniser(language, spec.synchroniser, tower.channels, sides)
    with _seeded(seed, "decoder"):
        decoder = ImageDecoder(spec.decoder, width, tower.channels, tower.sides, meta=meta)
    with _seeded(seed, "start"):
        return TextHarmony(tower, connector, language, memory, spec.levels, decoder, max_positions, spec.image_weight)


def _connector(spec: Any, tower: Any, width: int, meta: bool) -> nn.Module:
    if isinstance(spec, AudioQFormerSpec):
        from mmmoe.models.connectors.audio_qformer import AudioQFormer

        return AudioQFormer(spec, tower.channels, width)
    if isinstance(spec, SpeechDecoderSpec):
        from mmmoe.models.connectors.speech_decoder import SpeechDecoder

        return SpeechDecoder(spec, tower.channels, width, meta=meta)
    return MLPConnector(spec, tower.channels, width, tower.num_tokens)


def _language(spec: FamilySpec, seed: int, meta: bool) -> tuple[Any, int]:
    """Returns the language model and the longest sequence."""
    with _seeded(seed, "language"):
        language: Any = build_language(spec.language, meta=meta)
    most = language.config.max_position_embeddings
    max_positions = spec.max_positions or most
    if max_positions > most:
        raise ValueError(f"max_positions is {max_positions}, but the language model has {most} positions")
    return language, max_positions


BUILDERS: dict[str, Callable[[Any, int, bool], SplicedModel]] = {
    "llava_mole": _llava_mole,
    "uni_moe": _uni_moe,
    "mova": _mova,
    "text_harmony": _text_harmony,
}

TOWERS = {
    "open_clip": "open_clip:CLIPTower",
    "efficientnet_lite0": "efficientnet_lite0:EfficientNetLite0Tower",
    "efficientnet_lite0_fine": "efficientnet_lite0_fine:EfficientNetLite0FineTower",
    "dinov2": "dinov2:Dinov2Tower",
    "sam": "sam:SamTower",
    "pix2struct": "pix2struct:Pix2StructTower",
    "vit_adapter": "vit_adapter:ViTAdapterTower",
    "onnx": "onnx:OnnxTower",
    "simple_pyramid": "simple_pyramid:SimplePyramidTower",
    "whisper": "whisper:WhisperTower",
    "ast": "ast:ASTTower",
    "spectrogram_efficientnet": "spectrogram_efficientnet:SpectrogramEfficientNetTower",
}
"""The file in towers/ and the class of each kind."""


@contextmanager
def _placed(kind: str) -> Iterator[None]:
    """Puts the kind before the key path that a part's message begins with."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Draws from a generator of the part's own and leaves the global one as it was."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield
