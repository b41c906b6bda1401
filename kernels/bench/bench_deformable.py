"""Attention to points of maps beside transformers' torch path of it: time and bytes.

mmmoe bench deformable [rounds=5]

The peer is transformers' MultiScaleDeformableAttention (grid_sample a map, then a weighted sum), the same code in
Deformable DETR and Mask2Former; it computes the same and leaves nothing out. Each workload is one layer of a released
model at batch 1, or of a tiny one that a CPU trains; gradients of values, locations and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from mmmoe.kernels.deformable.op import deformable_attention
from mmmoe.kernels.measure import Result, Run, compare, compare_amounts, difference, rotating, take_turns_in_parts
from mmmoe.kernels.memory import MIB, weigh

DEFAULTS = {"rounds": 5}
OWN, TRANSFORMERS = "own", "transformers"
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


class Workload(NamedTuple):
    """A layer's sizes: batch, queries, heads, channels of a head, points, sides of the square maps."""

    name: str
    batch: int
    queries: int
    heads: int
    channels: int
    points: int
    sides: tuple[int, ...]
    bound: float | None = None

    def draw(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, locations (some outside the maps) and weights, with gradients wanted of all."""
        cells, per_query = sum(side * side for side in self.sides), (self.batch, self.queries, self.heads)
        value = torch.randn(self.batch, cells, self.heads, self.channels, device=device)
        location = torch.rand(*per_query, len(self.sides), self.points, 2, device=device) * 1.1 - 0.05
        weight = torch.randn(*per_query, len(self.sides) * self.points, device=device).softmax(-1)
        weight = weight.view(*per_query, len(self.sides), self.points)
        return value.requires_grad_(), location.requires_grad_(), weight.requires_grad_()


WORKLOADS = (
    Workload("text at 224 px", 1, 512, 16, 64, 8, (32, 16, 8), bound=0.5),
    Workload("text at 896 px", 1, 512, 16, 64, 8, (128, 64, 32), bound=0.6),
    Workload("U-Net, finest skip tensor", 1, 1024, 16, 64, 8, (64, 32, 16, 8), bound=0.5),
    Workload("ViT-Adapter at 224 px", 1, 256, 16, 32, 4, (32, 16, 8), bound=0.8),
    Workload("tiny ViT-Adapter", 8, 64, 4, 12, 4, (16, 8, 4)),
    Workload("tiny language model", 4, 128, 4, 16, 4, (8, 4, 2)),
)


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields the step, the forward alone and the most bytes alive in a step of each workload."""
    for load in WORKLOADS:
        ways: dict[str, Way] = {OWN: _own(load), TRANSFORMERS: _transformers(load, device)}
        drawn = load.draw(device)
        cotangent = torch.randn(load.batch, load.queries, load.heads * load.channels, device=device)
        weighed = {
            name: weigh(lambda: way(*drawn), lambda y: torch.autograd.grad(y, drawn, cotangent), drawn, device)  # noqa: B023
            for name, way in ways.items()
        }
        error = difference(weighed[OWN].value, weighed[TRANSFORMERS].value)
        parts = {name: _parts(way, load, cotangent, device) for name, way in ways.items()}
        forward, step = take_turns_in_parts(parts, sizes["rounds"], device)
        for what, times, bound in (("forward + backward", step, load.bound), ("forward", forward, None)):
            name = f"{load.name}: {what}"
            yield compare(name, times[OWN], TRANSFORMERS, times[TRANSFORMERS], bound=bound, error=error)
        own, other = (weighed[name].peak / MIB for name in ways)
        yield compare_amounts(f"{load.name}: most bytes at once", own, TRANSFORMERS, other, "MiB")


def _own(load: Workload) -> Way:
    sides = [(side, side) for side in load.sides]
    return lambda value, location, weight: deformable_attention(value, sides, location, weight)


def _transformers(load: Workload, device: torch.device) -> Way:
    sides = [(side, side) for side in load.sides]
    peer, shapes = MultiScaleDeformableAttention(), torch.tensor(sides, device=device)
    return lambda value, location, weight: peer(value, shapes, sides, None, location, weight, 64)


def _parts(way: Way, load: Workload, cotangent: Tensor, device: torch.device) -> list[Run]:
    made: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []

    def draw() -> Run:
        drawn = load.draw(device)
        return lambda: made.append((way(*drawn), drawn))

    def backward() -> object:
        result, drawn = made.pop()
        return torch.autograd.grad(result, drawn, cotangent)

    return [rotating(draw, device), backward]
