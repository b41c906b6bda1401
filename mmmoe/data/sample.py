"""One dialogue ready for a batch: ids, labels and its images as pixels or as features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """What the dataset hands to the collator."""

    input_ids: list[int]
    """IMAGE_ID stands for each image."""
    labels: list[int]
    """IGNORE_ID where there is no target; not shifted."""
    images: tuple[Tensor, ...] = ()
    """Pixels (C, H, W) of each image, in reading order."""
    features: tuple[Tensor, ...] = ()
    """In place of pixels, the tower's features (P, C) of each image."""
    source: int = 0
    """Number of the source in its mixture."""
    key: str = ""
    domain: str = ""
