"""How the multi-image feature synchronisers are declared: in the language model and beside the U-Net."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmmoe.config.spec import Spec

Side = Annotated[int, Field(ge=1)]


class SynchroniserSpec(Spec):
    """Deformable attention of text to the maps of earlier images (MM-Interleaved, arXiv 2401.10208, section 3.2)."""

    every: int = Field(default=4, ge=1)
    """Layers of the language model whose number is a multiple of it look at images; they are counted from 0."""
    heads: int = Field(default=16, ge=1)
    """Heads, each with points of its own."""
    points: int = Field(default=8, ge=1)
    """Points of a head on each map of an image."""
    value_width: int | None = Field(default=None, ge=1)
    """Width of what is read, a multiple of the heads; null: the channels of the maps."""
    base_side: int = Field(default=16, ge=1)
    """Side of the map on which an offset of 1 is one cell; on a map of twice the side it is two."""
    offset_range: float = Field(default=3.0, gt=0)
    """Offsets start uniform within plus and minus this."""
    max_images: int = Field(default=49, ge=1)
    """Most images of a dialogue. Their table has one row more, for images not seen: the released one has 50."""


class UNetSynchroniserSpec(Spec):
    """Deformable attention of an image that is being drawn to the maps of the image before it."""

    heads: int = Field(default=16, ge=1)
    """Heads, each with points of its own."""
    points: int = Field(default=8, ge=1)
    """Points of a head on each map."""
    value_width: int = Field(default=1024, ge=1)
    """Width of what is read, a multiple of the heads."""
    offset_sides: tuple[Side, ...] | None = None
    """Sides of the maps by which offsets are measured, in cells of the U-Net's own grid; null: the maps' true sides.
    The release says 64, 32, 16, 8 whatever its maps are."""
    offset_range: float = Field(default=1.0, gt=0)
    """Offsets start uniform within plus and minus this."""
    max_images: int = Field(default=9, ge=1)
    """Rows of the table of earlier images less one. Only one image is ever looked at: the released table has 10."""
