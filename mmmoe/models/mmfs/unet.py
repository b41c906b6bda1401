"""The synchroniser beside a diffusion U-Net: what is being drawn looks at the maps of the image before it.

Letters as in attention.py, and: R images of the I that have one before them, whose maps have S cells.
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

    def forward(self, sample_IDHW: Tensor, maps_RSC: Tensor, sides: Sequence[Grid], row_R: Tensor) -> Tensor:
        """Returns a sample with what these rows of it find in their maps, and the others in none."""
        found_RDHW = self._find(sample_IDHW[row_R], maps_RSC, sides)
        return sample_IDHW + self._blind().expand_as(sample_IDHW).index_copy(0, row_R, found_RDHW)

    def _find(self, sample_RDHW: Tensor, maps_RSC: Tensor, sides: Sequence[Grid]) -> Tensor:
        query_RTD = self.query_norm(rearrange(sample_RDHW, "r d h w -> r (h w) d"))
        query_RTD = query_RTD + self.position_TD.to(query_RTD.dtype)
        seen_R11 = torch.ones(len(maps_RSC), 1, 1, dtype=torch.bool, device=maps_RSC.device)
        found_RTD = self.attention(query_RTD, self.map_norm(maps_RSC)[:, None], sides, seen_R11, self.centre_T2)
        found_RDHW: Tensor = self.conv(rearrange(found_RTD, "r (h w) d -> r d h w", h=sample_RDHW.shape[2]))
        return found_RDHW

    def _blind(self) -> Tensor:
        """Returns what any place finds that sees no image (1, D, 1, 1)."""
        none_1D11: Tensor = self.conv(self.attention.blind()[0, :, :, None, None])
        return none_1D11


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
        row_R = self._rows(mid_IDHW, maps, mask_I)
        if maps is None:
            maps_RSC = mid_IDHW.new_zeros(0, sum(rows * columns for rows, columns in self.sides), self.channels)
        else:
            maps_RSC = torch.cat([map_ISC[row_R] for map_ISC in maps], dim=1).to(mid_IDHW.dtype)
        places = zip([*self.down, self.mid], [*skips, mid_IDHW], strict=True)
        *added, mid_IDHW = (self._read(reader, sample_IDHW, maps_RSC, row_R) for reader, sample_IDHW in places)
        return mid_IDHW, added

    def _rows(self, like: Tensor, maps: Sequence[Tensor] | None, mask_I: Tensor | None) -> Tensor:
        """Returns the images that have one before them; the host waits for it, to leave the others' work away."""
        if maps is None:
            return torch.zeros(0, dtype=torch.int64, device=like.device)
        if mask_I is None:
            return torch.arange(len(like), device=like.device)
        return mask_I.nonzero()[:, 0]

    def _read(self, reader: nn.Module, sample_IDHW: Tensor, maps_RSC: Tensor, row_R: Tensor) -> Tensor:
        # The same modules run whether or not there are images: processes that share the weights stay in step.
        arguments = (sample_IDHW, maps_RSC, self.sides, row_R)
        if self.gradient_checkpointing and self.training:
            again_IDHW: Tensor = checkpoint(reader, *arguments, use_reentrant=False)
            return again_IDHW
        added_IDHW: Tensor = reader(*arguments)
        return added_IDHW


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
