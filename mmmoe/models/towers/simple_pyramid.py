"""A pyramid of maps over any frozen tower of images: for encoders that were trained before, and have one map."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.towers.pyramid import PyramidTower
from mmmoe.models.towers.tower import ImageTower

TIMES = (4.0, 2.0, 1.0, 0.5)
"""Sides of the maps in sides of the tower's own, as a ViT-Adapter's."""


class SimplePyramidTower(PyramidTower):
    """The tower's own cells, and from them maps of 4, 2, 1 and half a cell a side.

    After ViTDet's simple feature pyramid (arXiv 2203.16527, section 3), whose convolutions are left out: larger maps
    are bilinear, the smaller one means of 2 x 2 cells, and the class token is the mean. So nothing is trained, and
    what is kept on disk are the cells alone: `split` makes the rest of them.
    """

    def __init__(self, tower: ImageTower) -> None:
        """Puts a pyramid on a tower.

        Raises:
            ValueError: Its map is not square, its side is odd, or it gives something beside a map.
        """
        super().__init__()
        rows, columns = tower.grid
        if rows != columns or rows % 2 or rows * columns != tower.num_tokens:
            raise ValueError(
                f"tower: a pyramid takes one square map of an even side, got {tower.num_tokens} vectors for a grid of "
                f"{rows} x {columns}"
            )
        self.body = tower
        self.image_size, self.fit, self.mean, self.std = tower.image_size, tower.fit, tower.mean, tower.std
        self.grid, self.channels = tower.grid, tower.channels
        self.num_tokens, self.num_constants = tower.num_tokens, tower.num_constants
        self.sides = tuple(int(rows * times) for times in TIMES)
        self.key = tower.key
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C): the tower's own."""
        features_IPC: Tensor = self.body(pixels_ICHW)
        return features_IPC

    def split(self, features_IPC: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the tokens (I, 1 + P, C), their mean first, and the maps (I, S, C), the largest first."""
        tokens_INC = torch.cat([features_IPC.mean(1, keepdim=True), features_IPC], dim=1)
        side = math.isqrt(self.num_tokens)
        map_ICHW = rearrange(features_IPC, "i (h w) c -> i c h w", h=side)
        return tokens_INC, [rearrange(_resized(map_ICHW, size), "i c h w -> i (h w) c") for size in self.sides]


def _resized(map_ICHW: Tensor, size: int) -> Tensor:
    side = map_ICHW.shape[-1]
    if size == side:
        return map_ICHW
    if size < side:
        return F.avg_pool2d(map_ICHW, side // size)
    return F.interpolate(map_ICHW, size=(size, size), mode="bilinear", align_corners=False)
