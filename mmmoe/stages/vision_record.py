"""What a step's line says of vision experts: who looked at how many images of which source, and how they counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmmoe.models.output import VisionStatistics

DIGITS = 5
"""Of a mean weight, after the point."""


class VisionSums:
    """Adds up the statistics of a step's micro-batches by source (S)."""

    def __init__(self, experts: tuple[str, ...], blocks: int, sources: list[str]) -> None:
        self.experts, self._sources = experts, sources
        self.count_SX = torch.zeros(len(sources), 2 + len(experts), dtype=torch.float64)
        """Images, images that an expert looked at, and images that each looked at."""
        self.weight_SLE = torch.zeros(len(sources), blocks, len(experts), dtype=torch.float64)

    def add(self, vision: VisionStatistics, source_B: Tensor) -> None:
        """Adds a micro-batch of this process."""
        count_BX = torch.cat([vision.images_B[:, None], vision.enriched_B[:, None], vision.routed_BE], dim=1)
        self.count_SX.index_add_(0, source_B, count_BX.double().cpu())
        self.weight_SLE.index_add_(0, source_B, vision.weight_BLE.double().cpu())

    def parts(self) -> list[Tensor]:
        """Returns what is to be summed over processes."""
        return [self.count_SX, self.weight_SLE]

    def record(self, summed: Iterator[Tensor]) -> dict[str, Any]:
        """Returns the field `vision` of a step's line: a table by source, of those that had images.

        Routing passes are no images here: nothing looks at them but the base tower.

        - `images`: images of the step.
        - `enriched`: those that at least one expert looked at.
        - `routed`: by expert, those that it looked at; they add up to more than `enriched` where several look at one.
        - `gates`: for each block of the adapter, its weights in the order of `routed`, as means over the `enriched`
          images; a row adds up to 1. Left out where no image is enriched.

        Args:
            summed: the parts, over all processes.
        """
        count_SX, weight_SLE = (next(summed).view(part.shape) for part in self.parts())
        record: dict[str, Any] = {}
        for source, count_X, weight_LE in zip(self._sources, count_SX, weight_SLE, strict=True):
            images, enriched, *routed = count_X.long().tolist()
            if not images:
                continue
            by_expert = dict(zip(self.experts, routed, strict=True))
            record[source] = {"images": images, "enriched": enriched, "routed": by_expert}
            if enriched:
                gates = [[round(weight, DIGITS) for weight in row] for row in (weight_LE / enriched).tolist()]
                record[source]["gates"] = gates
        return {"vision": record}
