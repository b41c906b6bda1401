"""Samples become one micro-batch: padded on the right, images of all samples in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.data.sample import Sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process, as model and loop take it."""

    input_ids_BT: Tensor
    """int64; IMAGE_ID stands for each image."""
    labels_BT: Tensor
    """int64, not shifted."""
    attention_mask_BT: Tensor
    """True on tokens, False on padding."""
    pixels_ICHW: Tensor | None
    """Images of all samples, row by row, or None."""
    features_IPC: Tensor | None
    """In place of pixels: the tower's features, float32, or None."""
    source_B: Tensor
    """int64: number of each sample's source."""
    keys: tuple[str, ...]
    domains: tuple[str, ...]
    num_samples: int
    """0 when all samples of the micro-batch were set aside; it then has no rows."""
    num_targets: int
    num_tokens: int

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            labels_BT=self.labels_BT.to(device, non_blocking=True),
            attention_mask_BT=self.attention_mask_BT.to(device, non_blocking=True),
            pixels_ICHW=move(self.pixels_ICHW),
            features_IPC=move(self.features_IPC),
            source_B=self.source_B.to(device, non_blocking=True),
        )

    def inputs(self) -> dict[str, object]:
        """Returns the keyword arguments of the model's forward."""
        return {
            "input_ids_BT": self.input_ids_BT,
            "labels_BT": self.labels_BT,
            "attention_mask_BT": self.attention_mask_BT,
            "pixels_ICHW": self.pixels_ICHW,
            "features_IPC": self.features_IPC,
        }


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Returns a batch of the samples, in their order.

    No samples give a batch of no rows; a model runs all its parts on it all the same, since where parameters are
    sharded a process that skipped a forward would leave the others waiting.

    Raises:
        ValueError: Some samples bring pixels and others features.
    """
    rows = list(samples)
    length = max((len(row.input_ids) for row in rows), default=1)
    input_ids_BT = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    labels_BT = torch.full((len(rows), length), IGNORE_ID, dtype=torch.int64)
    attention_mask_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for number, row in enumerate(rows):
        input_ids_BT[number, : len(row.input_ids)] = torch.tensor(row.input_ids, dtype=torch.int64)
        labels_BT[number, : len(row.labels)] = torch.tensor(row.labels, dtype=torch.int64)
        attention_mask_BT[number, : len(row.input_ids)] = True
    images = [image for row in rows for image in row.images]
    features = [feature for row in rows for feature in row.features]
    if images and features:
        raise ValueError("a batch mixes pixels and cached features; encode all sources of the mixture or none")
    return Batch(
        input_ids_BT=input_ids_BT,
        labels_BT=labels_BT,
        attention_mask_BT=attention_mask_BT,
        pixels_ICHW=torch.stack(images) if images else None,
        features_IPC=torch.stack(features).float() if features else None,
        source_B=torch.tensor([row.source for row in rows], dtype=torch.int64),
        keys=tuple(row.key for row in rows),
        domains=tuple(row.domain for row in rows),
        num_samples=len(samples),
        # The first position of a sequence is predicted by nothing, so it is no target whatever its label.
        num_targets=int((labels_BT[:, 1:] != IGNORE_ID).sum()),
        num_tokens=sum(i != IMAGE_ID for row in samples for i in row.input_ids),
    )
