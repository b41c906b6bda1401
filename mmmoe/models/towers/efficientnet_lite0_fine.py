"""EfficientNet-Lite0 up to its stride-16 features: a small base encoder with a grid fine enough for a MoV-Adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.towers.efficientnet_lite0 import STRIDE16_CHANNELS, EfficientNetLite0
from mmmoe.models.towers.spec import EfficientNetFineTower
from mmmoe.models.towers.tower import ImageTower

FILLED = 128
"""Channels that come out: the network's 112, normalised, and zeros, because a head of the adapter takes 64."""


class EfficientNetLite0FineTower(EfficientNetLite0, ImageTower):
    """Cells of 16 pixels. With `resolution` the picture is shrunk first: small print is lost, and left to experts."""

    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, spec: EfficientNetFineTower, *, meta: bool = False) -> None:
        super().__init__(stride16=True, meta=meta)
        self.coarse = nn.ModuleList()
        del self.head
        self.image_size, self.resolution = spec.image_size, spec.resolution
        self.grid = (spec.image_size // 16, spec.image_size // 16)
        self.num_tokens = self.grid[0] * self.grid[1]
        self.channels = FILLED
        seen = spec.resolution or spec.image_size
        self.key = f"efficientnet_lite0-{self.weights}-{spec.image_size}px-of{seen}-fine-filled"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns features (I, P, C) of normalised pixels."""
        x = pixels_ICHW.to(next(self.parameters()).dtype)
        if self.resolution is not None:
            x = F.interpolate(x, size=self.resolution, mode="bilinear", antialias=True)
            x = F.interpolate(x, size=self.image_size, mode="bilinear")
        x = self.stem(x.to(memory_format=torch.channels_last))
        for block in self.fine:
            x = block(x)
        cells_IPC = x.flatten(2).transpose(1, 2)
        return F.pad(F.layer_norm(cells_IPC, cells_IPC.shape[2:]), (0, FILLED - STRIDE16_CHANNELS))
