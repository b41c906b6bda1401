"""The image encoder of Pix2Struct (arXiv 2210.03347) and of Deplot (2212.10505): MoVA's experts for text and charts."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import Pix2StructForConditionalGeneration, Pix2StructVisionModel

from mmmoe.models.folder import declared_config, pretrained, state_digest
from mmmoe.models.towers.spec import Pix2StructTowerSpec
from mmmoe.models.towers.tower import ImageTower

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""The colour that MoVA pads images with; normalisation is this tower's own and undoes it."""


class Pix2StructTower(ImageTower):
    """The last hidden state, after the last norm, of a square image in patches of 16 pixels.

    What transformers' image processor does to a square image of this size happens here: each image is standardised
    over all its values, and each patch says its row and column, counted from 1. The processor standardises before it
    resizes; here images come resized, so other sizes differ slightly from it.
    """

    mean, std = CLIP_MEAN, (1.0, 1.0, 1.0)

    def __init__(self, spec: Pix2StructTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "tower", ("pix2struct",)).vision_config
        self.image_size = spec.image_size
        self.patch = math.isqrt(int(config.patch_embed_hidden_size) // 3)
        if 3 * self.patch**2 != config.patch_embed_hidden_size:
            raise ValueError(
                f"tower.config has patch_embed_hidden_size {config.patch_embed_hidden_size}, which is not 3 colours of "
                "a square patch"
            )
        if spec.image_size % self.patch:
            raise ValueError(f"tower.image_size is {spec.image_size}, no multiple of the patch of {self.patch} pixels")
        side = spec.image_size // self.patch
        if side >= config.seq_len:
            raise ValueError(
                f"tower.image_size {spec.image_size} makes {side} rows; this Pix2Struct knows {config.seq_len - 1}"
            )
        if spec.path is None or meta:
            self.encoder: Any = Pix2StructVisionModel(config)
            weights = state_digest(self.encoder)
        else:
            model, weights = pretrained(
                Pix2StructForConditionalGeneration, spec.path, spec.config, "tower.config", "Pix2Struct", "encoder."
            )
            self.encoder = model.encoder
        self.grid, self.num_tokens = (side, side), side * side
        self.channels = int(config.hidden_size)
        self.key = f"pix2struct-{weights}-{spec.image_size}px"
        self.freeze()

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns patch features (I, P, C)."""
        patches_IPC = self.patches(pixels_ICHW)
        mask_IP = torch.ones(patches_IPC.shape[:2], device=patches_IPC.device)
        hidden_IPC: Tensor = self.encoder(patches_IPC.to(self.encoder.dtype), attention_mask=mask_IP).last_hidden_state
        return hidden_IPC

    def patches(self, pixels_ICHW: Tensor) -> Tensor:
        """Returns standardised patches (I, P, 2 + C): row, column, then the values, colours innermost."""
        mean_CHW = torch.tensor(self.mean, device=pixels_ICHW.device).view(3, 1, 1)
        values_ICHW = (pixels_ICHW.float() + mean_CHW) * 255.0
        num_values = values_ICHW[0].numel()
        mean_I111 = values_ICHW.mean((1, 2, 3), keepdim=True)
        std_I111 = values_ICHW.std((1, 2, 3), keepdim=True).clamp_min(num_values**-0.5)
        patches_IPC = rearrange(
            (values_ICHW - mean_I111) / std_I111, "i c (h y) (w x) -> i (h w) (y x c)", y=self.patch, x=self.patch
        )
        rows, columns = (torch.arange(1.0, side + 1, device=pixels_ICHW.device) for side in self.grid)
        place_P2 = torch.cartesian_prod(rows, columns)
        return torch.cat([place_P2.expand(len(patches_IPC), -1, -1), patches_IPC], dim=2)
