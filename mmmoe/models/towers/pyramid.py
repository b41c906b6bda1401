"""Encoders of images that give, besides tokens, maps of several sizes: a pyramid."""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.models.towers.tower import ImageTower


class PyramidTower(ImageTower):
    """Features are one tensor: a class token, the tokens of the patches, then the cells of each map.

    Tokens and cells are equally wide, so that caches, transforms and families see a tower like any other. `grid` is
    that of the patches; `num_tokens` counts everything.
    """

    sides: tuple[int, ...]
    """Sides of the square maps, the largest first."""

    @property
    def num_patches(self) -> int:
        """Returns how many patches the image has (N); with the class token there is one token more."""
        return self.grid[0] * self.grid[1]

    def count(self) -> int:
        """Returns how many vectors tokens and maps are together (P)."""
        return 1 + self.num_patches + sum(side * side for side in self.sides)

    def split(self, features_IPC: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the tokens (I, 1 + N, C), the class token first, and the maps (I, S, C), the largest first."""
        sizes = [1 + self.num_patches, *(side * side for side in self.sides)]
        tokens_INC, *maps = torch.split(features_IPC, sizes, dim=1)
        return tokens_INC, maps
