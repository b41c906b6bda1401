"""The synchroniser beside a diffusion U-Net: what is being drawn looks at the maps of the image before it.

Letters as in attention.py: N images that can be looked at (one), S cells of an image's maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmmoe.models.mmfs.attention import Grid, MultiImageAttention
from mmmoe.models.mmfs.spec import UNetSynchroniserSpec
from mmmoe.models.position_tables import resized, sincos_grid

NORM_EPSILON = 1e-6
EXTRAS = (
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_embedding_act_fn",
    "num_class_embeds",
)
"""Fields of a U-Net's configuration that add inputs or steps which are not offered here."""


class MapReader(nn.Module):
    """Of one place in the U-Net: a 1 x 1 convolution, zero at first, of what its cells find in the maps."""

    def __init__(
        self, spec: UNetSynchroniserSpec, width: int, channels: int, sides: Sequence[Grid], finest: Grid, grid: Grid
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.map_norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.attention = MultiImageAttention(
            width,
            channels,
            spec.value_width,
            sides,
            grid,
            heads=spec.heads,
            points=spec.points,
            offset_range=spec.offset_range,
            max_images=spec.max_images,
        )
        self.conv = nn.Conv2d(width, width, 1)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("position_TD", resized(sincos_grid(max(finest), width), grid), persistent=False)
        self.register_buffer("centre_T2", _centres(grid), persistent=False)
        self.position_TD: Tensor
        self.centre_T2: Tensor

    def forward(self, sample_IDHW: Tensor, maps_INSC: Tensor, sides: Sequence[Grid], mask_IN: Tensor) -> Tensor:
        """Returns what is to be added to a sample."""
        query_ITD = self.query_norm(rearrange(sample_IDHW, "i d h w -> i (h w) d"))
        query_ITD = query_ITD + self.position_TD.to(query_ITD.dtype)
        found_ITD = self.attention(query_ITD, self.map_norm(maps_INSC), sides, mask_IN[:, None], self.centre_T2)
        found_IDHW: Tensor = self.conv(rearrange(found_ITD, "i (h w) d -> i d h w", h=sample_IDHW.shape[2]))
        return found_IDHW


class UNetSynchroniser(nn.Module):
    """MMFSNet of MM-Interleaved (arXiv 2401.10208, section 3.2): a map reader for each skip tensor and for the middle.

    Where an image has none before it, readers add what they give for none: the convolution of the output's bias.
    """

    gradient_checkpointing = False
    """Whether readers are computed again in the backward pass instead of keeping what they need for it."""

    def __init__(
        self, spec: UNetSynchroniserSpec, unet_config: Any, channels: int, sides: Sequence[int], grid: Grid
    ) -> None:
        """Draws fresh weights.

        Args:
            spec: the declaration.
            unet_config: of a diffusers UNet2DConditionModel, by attribute.
            channels: of the maps.
            sides: of the maps.
            grid: rows and columns of the latents.

        Raises:
            ValueError: The U-Net takes what this does not offer, or `offset_sides` is not one number a map.
        """
        super().__init__()
        extras = [name for name in EXTRAS if getattr(unet_config, name, None) is not None]
        if extras or getattr(unet_config, "center_input_sample", False):
            raise ValueError(
                f"the U-Net's configuration sets {', '.join(extras) or 'center_input_sample'}, which the synchroniser "
                "beside it does not offer; choose one like Stable Diffusion's"
            )
        offset_sides = spec.offset_sides or tuple(sides)
        if len(offset_sides) != len(sides):
            raise ValueError(f"offset_sides has {len(offset_sides)} sides, the image's pyramid {len(sides)} maps")
        self.sides = tuple((side, side) for side in sides)
        measured = [(side, side) for side in offset_sides]
        places = _places(unet_config, grid)
        readers = [MapReader(spec, width, channels, measured, grid, at) for width, at in places]
        self.down, self.mid = nn.ModuleList(readers[:-1]), readers[-1]
        self.channels = channels

    def forward(
        self,
        unet: Any,
        sample_ICHW: Tensor,
        timestep_I: Tensor,
        context_ILD: Tensor,
        maps: Sequence[Tensor] | None,
        mask_I: Tensor | None,
    ) -> Tensor:
        """Returns the U-Net's output (I, C, rows, columns) with the synchroniser's part in it.

        Put together from the U-Net's own parts, for its arguments take residuals but do not give the skip tensors that
        they are to be computed from.

        Args:
            unet: a diffusers UNet2DConditionModel.
            sample_ICHW: latents with noise.
            timestep_I: their steps.
            context_ILD: what its cross-attention reads.
            maps: of the image before each one, (I, side * side, channels) a side; None: no image has one before it.
            mask_I: whether an image has one before it; None: all have, if there are maps.
        """
        step_ID = unet.time_embedding(unet.get_time_embed(sample_ICHW, timestep_I))
        sample_IDHW = unet.conv_in(sample_ICHW)
        skips = [sample_IDHW]
        for block in unet.down_blocks:
            sample_IDHW, more = block(hidden_states=sample_IDHW, temb=step_ID, **_context(block, context_ILD))
            skips += more
        if unet.mid_block is not None:
            sample_IDHW = unet.mid_block(sample_IDHW, step_ID, **_context(unet.mid_block, context_ILD))
        sample_IDHW, skips = self.add(sample_IDHW, skips, maps, mask_I)
        for block in unet.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            sample_IDHW = block(
                hidden_states=sample_IDHW,
                temb=step_ID,
                res_hidden_states_tuple=tuple(taken),
                # Sizes that halving rounds must be met again on the way up.
                upsample_size=tuple(skips[-1].shape[2:]) if skips else None,
                **_context(block, context_ILD),
            )
        if unet.conv_norm_out is not None:
            sample_IDHW = unet.conv_act(unet.conv_norm_out(sample_IDHW))
        noise_ICHW: Tensor = unet.conv_out(sample_IDHW)
        return noise_ICHW

    def add(
        self, mid_IDHW: Tensor, skips: Sequence[Tensor], maps: Sequence[Tensor] | None, mask_I: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the middle's sample and the skip tensors, each with what its reader finds."""
        if maps is None:  # one cell a map, which nobody sees: the same result as maps that are masked
            maps = [mid_IDHW.new_zeros(len(mid_IDHW), 1, self.channels)] * len(self.sides)
            sides: Sequence[Grid] = [(1, 1)] * len(self.sides)
            mask_I = mid_IDHW.new_zeros(len(mid_IDHW))
        else:
            sides = self.sides
        maps_INSC = torch.cat(list(maps), dim=1)[:, None].to(mid_IDHW.dtype)
        mask_IN = torch.ones_like(maps_INSC[:, :, 0, 0]) if mask_I is None else mask_I[:, None]
        seen = (maps_INSC, sides, mask_IN.bool())
        found = [
            self._read(reader, sample_IDHW, *seen)
            for reader, sample_IDHW in zip([*self.down, self.mid], [*skips, mid_IDHW], strict=True)
        ]
        added = [skip_IDHW + found_IDHW for skip_IDHW, found_IDHW in zip(skips, found[:-1], strict=True)]
        return mid_IDHW + found[-1], added

    def _read(self, reader: nn.Module, sample_IDHW: Tensor, *seen: Any) -> Tensor:
        if self.gradient_checkpointing and self.training:
            again_IDHW: Tensor = checkpoint(reader, sample_IDHW, *seen, use_reentrant=False)
            return again_IDHW
        found_IDHW: Tensor = reader(sample_IDHW, *seen)
        return found_IDHW


def _context(block: Any, context_ILD: Tensor) -> dict[str, Tensor]:
    """Returns what a block reads of the context: nothing if it has no cross-attention."""
    return {"encoder_hidden_states": context_ILD} if getattr(block, "has_cross_attention", False) else {}


def _places(config: Any, grid: Grid) -> list[tuple[int, Grid]]:
    """Returns width and grid of each skip tensor of a U-Net in its order, and last those of its middle."""
    widths, layers = config.block_out_channels, config.layers_per_block
    layers = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    places = [(widths[0], grid)]
    for number, (width, count) in enumerate(zip(widths, layers, strict=True)):
        places += [(width, grid)] * count
        if number < len(widths) - 1:
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            places.append((width, grid))
    return [*places, (widths[-1], grid)]


def _centres(grid: Grid) -> Tensor:
    """Returns x and y in 0..1 of a grid's cells (rows * columns, 2) in reading order."""
    rows, columns = grid
    y_P = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    x_P = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    return torch.stack([x_P, y_P], dim=1)
