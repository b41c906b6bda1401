"""The ViT-Adapter beside a plain vision transformer: convolutions see fine detail, and both read each other.

Suffix N stands for patches, S for the cells of the adapter's three maps, one map after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.towers.spec import ViTAdapterTowerSpec
from mmmoe.models.towers.vit_adapter_attention import DeformableAttention, centres

INTERACTIONS = 4
"""Groups of the transformer's layers, one for each map that comes out."""
STRIDE = 16
"""Pixels of a patch in the picture that the convolutions see."""


def _convolution(channels: int, width: int, stride: int) -> list[nn.Module]:
    layer = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [layer, LayerNorm2d(width), nn.ReLU(inplace=True)]


class SpatialPrior(nn.Module):
    """Convolutions of a picture of 16 pixels a patch: maps of 4, 2, 1 and half a cell a patch's side.

    The last three get a learned vector each, which tells them apart when they lie one after the other.
    """

    def __init__(self, width: int, channels: int, side: int) -> None:
        super().__init__()
        self.size = (side * STRIDE, side * STRIDE)
        stem = [*_convolution(3, width, 2), *_convolution(width, width, 1), *_convolution(width, width, 1)]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*_convolution(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*_convolution(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*_convolution(4 * width, 4 * width, 2))
        self.fc1 = nn.Conv2d(width, channels, 1)
        self.fc2 = nn.Conv2d(2 * width, channels, 1)
        self.fc3 = nn.Conv2d(4 * width, channels, 1)
        self.fc4 = nn.Conv2d(4 * width, channels, 1)
        self.level_3C = nn.Parameter(torch.zeros(3, channels))

    def forward(self, pixels_ICHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the largest map (I, C, H, W) and the cells (I, S, C) of the other three."""
        resized_ICHW = F.interpolate(pixels_ICHW, size=self.size, mode="bilinear", align_corners=False)
        stem_ICHW = self.stem(resized_ICHW)
        second_ICHW = self.conv2(stem_ICHW)
        third_ICHW = self.conv3(second_ICHW)
        fourth_ICHW = self.conv4(third_ICHW)
        smaller = (self.fc2(second_ICHW), self.fc3(third_ICHW), self.fc4(fourth_ICHW))
        cells = [map_ICHW.flatten(2).transpose(1, 2) + self.level_3C[level] for level, map_ICHW in enumerate(smaller)]
        return self.fc1(stem_ICHW), torch.cat(cells, dim=1)


class Injector(nn.Module):
    """Patches read the adapter's maps; a scale a channel starts at zero, so that a fresh adapter changes nothing."""

    def __init__(self, attention: DeformableAttention, channels: int) -> None:
        super().__init__()
        self.patch_norm, self.map_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = attention
        self.scale_C = nn.Parameter(torch.zeros(channels))

    def forward(self, x_INC: Tensor, place_N2: Tensor, cells_ISC: Tensor) -> Tensor:
        """Returns the patches (I, N, C)."""
        found_INC: Tensor = self.attention(self.patch_norm(x_INC), place_N2, self.map_norm(cells_ISC))
        return x_INC + self.scale_C * found_INC


class ConvolvedMLP(nn.Module):
    """A feed-forward block with a depth-wise 3 x 3 convolution of each map inside."""

    def __init__(self, channels: int, inner: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.up_proj = nn.Linear(channels, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.down_proj = nn.Linear(inner, channels)

    def forward(self, x_ISC: Tensor) -> Tensor:
        """Returns the update of the cells (I, S, C)."""
        maps = _as_maps(self.up_proj(x_ISC), self.sides)
        mixed_ISC = torch.cat([self.depthwise(map_ICHW).flatten(2) for map_ICHW in maps], dim=2).transpose(1, 2)
        update_ISC: Tensor = self.down_proj(F.gelu(mixed_ISC))
        return update_ISC


class Extractor(nn.Module):
    """The adapter's maps read the patches, then go through a feed-forward block."""

    def __init__(self, attention: DeformableAttention, channels: int, inner: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.map_norm, self.patch_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = ConvolvedMLP(channels, inner, sides)

    def forward(self, cells_ISC: Tensor, place_S2: Tensor, x_INC: Tensor) -> Tensor:
        """Returns the cells (I, S, C)."""
        cells_ISC = cells_ISC + self.attention(self.map_norm(cells_ISC), place_S2, self.patch_norm(x_INC))
        update_ISC: Tensor = self.mlp(self.mlp_norm(cells_ISC))
        return cells_ISC + update_ISC


class Interaction(nn.Module):
    """What happens before and after a group of the transformer's layers; after the last, two more extractors."""

    def __init__(self, spec: ViTAdapterTowerSpec, channels: int, heads: int, side: int, is_last: bool) -> None:
        super().__init__()
        maps = adapter_sides(side)
        value, inner = int(channels * spec.value_ratio), int(channels * spec.inner_ratio)

        def attention(sides: Sequence[int]) -> DeformableAttention:
            return DeformableAttention(channels, sides, heads, spec.points, value)

        self.injector = Injector(attention(maps), channels)
        self.extractors = nn.ModuleList(
            Extractor(attention([side]), channels, inner, maps) for _ in range(3 if is_last else 1)
        )

    def extract(self, cells_ISC: Tensor, place_S2: Tensor, x_INC: Tensor) -> Tensor:
        """Returns the cells (I, S, C) of the maps."""
        for extractor in self.extractors:
            cells_ISC = extractor(cells_ISC, place_S2, x_INC)
        return cells_ISC


class ViTAdapter(nn.Module):
    """ViT-Adapter (arXiv 2205.08534, section 3) for a transformer with a class token, as MM-Interleaved has it.

    Its maps are of 2, 1 and half a cell a patch's side; a fourth, twice as fine as the finest, is made at the end.
    """

    def __init__(self, spec: ViTAdapterTowerSpec, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.side, self.sides = side, adapter_sides(side)
        self.prior = SpatialPrior(spec.prior_width, channels, side)
        self.interactions = nn.ModuleList(
            Interaction(spec, channels, heads, side, number == INTERACTIONS - 1) for number in range(INTERACTIONS)
        )
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.register_buffer("place_N2", centres([side]), persistent=False)
        self.register_buffer("place_S2", centres(self.sides), persistent=False)
        self.place_N2: Tensor
        self.place_S2: Tensor

    def finish(self, largest_ICHW: Tensor, cells_ISC: Tensor, seen: Sequence[Tensor]) -> list[Tensor]:
        """Returns the four maps (I, S, C), the largest first.

        Args:
            largest_ICHW: of the prior.
            cells_ISC: the adapter's maps after the last interaction.
            seen: the patches (I, N, C) after each group of layers; each group is added to the map of its number.
        """
        maps = _as_maps(cells_ISC, self.sides)
        maps = [self.up(maps[0]) + largest_ICHW, *maps]
        made = []
        for map_ICHW, x_INC in zip(maps, seen, strict=True):
            x_ICHW = rearrange(x_INC, "i (h w) c -> i c h w", h=self.side)
            if map_ICHW.shape[2:] != x_ICHW.shape[2:]:
                x_ICHW = F.interpolate(x_ICHW, size=map_ICHW.shape[2:], mode="bilinear", align_corners=False)
            made.append((map_ICHW + x_ICHW).flatten(2).transpose(1, 2))
        return made


def adapter_sides(side: int) -> list[int]:
    """Returns the sides of the maps that the adapter carries along, for a grid of patches of this side."""
    return [2 * side, side, side // 2]


def _as_maps(cells_ISC: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """Returns the maps (I, C, H, W) whose cells lie one after the other."""
    parts = torch.split(cells_ISC, [side * side for side in sides], dim=1)
    return [rearrange(part, "i (h w) c -> i c h w", h=side) for part, side in zip(parts, sides, strict=True)]
