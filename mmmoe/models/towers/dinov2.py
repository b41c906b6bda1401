"""DINOv2 (arXiv 2304.07193): an encoder of images that was trained without text, MoVA's expert for grounding."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Dinov2Model

from mmmoe.models.folder import declared_config, pretrained, state_digest, stated_colours
from mmmoe.models.towers.spec import Dinov2TowerSpec
from mmmoe.models.towers.tower import IMAGENET, ImageTower


class Dinov2Tower(ImageTower):
    """Patch tokens of the last hidden state, after the last norm, or of a hidden layer as it is.

    Sizes other than the configuration's interpolate the table of positions, as transformers does. MoVA's paper gives
    1536 x 37 x 37; its code takes hidden layer -2 here, since it uses CLIP's number for both.
    """

    def __init__(self, spec: Dinov2TowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "tower", ("dinov2",))
        self.image_size = spec.image_size or int(config.image_size)
        patch, blocks = int(config.patch_size), int(config.num_hidden_layers)
        if self.image_size % patch:
            raise ValueError(f"tower.image_size is {self.image_size}, no multiple of this DINOv2's patch of {patch}")
        if spec.layer is not None and not -blocks <= spec.layer < blocks:
            raise ValueError(f"tower.layer is {spec.layer}, but this DINOv2 has {blocks} layers")
        if spec.path is None or meta:
            self.encoder: Any = Dinov2Model(config)
            weights = state_digest(self.encoder)
        else:
            self.encoder, weights = pretrained(Dinov2Model, spec.path, spec.config, "tower.config", "DINOv2")
        self.block = None if spec.layer is None else spec.layer % blocks
        self.grid = (self.image_size // patch, self.image_size // patch)
        self.num_tokens = self.grid[0] * self.grid[1]
        self.channels = int(config.hidden_size)
        self.mean, self.std = stated_colours(spec.path, IMAGENET)
        taken = "last" if self.block is None else f"layer{self.block}"
        self.key = f"dinov2-{weights}-{taken}-{self.image_size}px-{self.colours}"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns patch features (I, P, C)."""
        pixels_ICHW = pixels_ICHW.to(self.encoder.dtype)
        if self.block is None:
            hidden_IPC: Tensor = self.encoder(pixels_ICHW).last_hidden_state
        else:
            hidden_IPC = self.encoder.embeddings(pixels_ICHW)
            for layer in self.encoder.encoder.layer[: self.block + 1]:
                hidden_IPC = layer(hidden_IPC)
        return hidden_IPC[:, 1:]
