"""Experts' maps: given for the images that are routed to them only, brought to the base tower's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RoutedMap:
    """An expert's map and whose images it is of."""

    map_IPC: Tensor
    """(I_e, P, C_e), compact."""
    image_I: Tensor | None
    """Places of the images in the batch, rising; None: all of them, so that nothing need be picked."""

    def pick(self, x: Tensor) -> Tensor:
        """Returns the rows of a batch's tensor (I, ...) that belong to the map's images."""
        return x if self.image_I is None else x.index_select(0, self.image_I)

    def add_(self, sum_IPC: Tensor, part_IPC: Tensor) -> None:
        """Adds what belongs to the map's images to their rows, in place."""
        if self.image_I is None:
            sum_IPC.add_(part_IPC)
        else:
            sum_IPC.index_add_(0, self.image_I, part_IPC)


def compact(features: Mapping[str, Tensor], routing_IE: Tensor) -> dict[str, Tensor]:
    """Returns of each expert's features (I, P, C) those of the images routed to it; experts without any are left out.

    Args:
        features: every expert's, in the order of the routing's columns.
        routing_IE: 1 where an expert is routed to an image. How many images that are must be known, so a GPU is
            waited for if it lies there.
    """
    is_routed_IE = routing_IE != 0
    assert len(features) == is_routed_IE.shape[1], (list(features), is_routed_IE.shape)
    kept = {name: map_IPC[is_routed_IE[:, e]] for e, (name, map_IPC) in enumerate(features.items())}
    return {name: map_IPC for name, map_IPC in kept.items() if len(map_IPC)}


def place(maps: Mapping[str, Tensor], names: Sequence[str], routing_IE: Tensor) -> dict[str, RoutedMap]:
    """Returns each map with the places of its images, without waiting for a GPU.

    Raises:
        ValueError: A name is unknown, or there are not as many maps of an expert as images routed to it (the latter is
            checked where the routing is on the host; elsewhere it would have to be waited for).
    """
    unknown = sorted(set(maps) - set(names))
    if unknown:
        raise ValueError(f"features of unknown experts {unknown}; the adapter has {list(names)}")
    counts = {name: len(maps[name]) if name in maps else 0 for name in names}
    is_routed_IE = routing_IE != 0
    if routing_IE.device.type == "cpu":
        wanted = dict(zip(names, is_routed_IE.sum(0).tolist(), strict=True))
        if wanted != counts:
            raise ValueError(f"images routed to experts: {wanted}, but features are given of {counts}")
    # Stable and falling: the images of an expert come first, in their order.
    order_IE = is_routed_IE.to(torch.uint8).argsort(dim=0, descending=True, stable=True)
    placed = {}
    for e, name in enumerate(names):
        if counts[name]:
            image_I = None if counts[name] == len(routing_IE) else order_IE[: counts[name], e].to(maps[name].device)
            placed[name] = RoutedMap(maps[name], image_I)
    return placed


def on_grid(map_IPC: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Returns a map of one grid (rows, columns) interpolated linearly to another, corners not aligned (MoVA)."""
    assert map_IPC.shape[1] == grid[0] * grid[1], (map_IPC.shape, grid)
    if grid == wanted:
        return map_IPC
    exact = torch.promote_types(map_IPC.dtype, torch.float32)
    map_ICHW = rearrange(map_IPC.to(exact), "i (h w) c -> i c h w", h=grid[0])
    resized_ICHW = F.interpolate(map_ICHW, size=wanted, mode="bilinear", align_corners=False)
    return rearrange(resized_ICHW, "i c h w -> i (h w) c").to(map_IPC.dtype)
