"""Samples become one micro-batch: padded on the right, media of all samples in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmmoe.config.ids import IGNORE_ID
from mmmoe.data.media import KINDS, kind_of
from mmmoe.data.sample import Sample

ORDER = tuple(KINDS)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process, as model and loop take it."""

    input_ids_BT: Tensor
    """int64; a negative id (MEDIA_IDS) stands for each image, video, and chunk of speech or audio."""
    labels_BT: Tensor
    """int64, not shifted."""
    attention_mask_BT: Tensor
    """True on tokens, False on padding."""
    media: Mapping[str, Tensor]
    """By kind, what stands at its placeholders, row by row: image (I, C, H, W), video (V, F, C, H, W), speech
    (S, mel, frames), audio (A, frames, mel)."""
    features: Mapping[str, Tensor]
    """In place of media of a kind: its tower's features, float32; (I, P, C), of a video (V, F, P, C)."""
    source_B: Tensor
    """int64: number of each sample's source."""
    task_B: Tensor
    """int64: number of each answer's task (`config/ids.TASKS`), -1 where nobody said."""
    keys: tuple[str, ...]
    domains: tuple[str, ...]
    num_samples: int
    """0 when all samples of the micro-batch were set aside; it then has no rows."""
    num_targets: int
    num_tokens: int

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""

        def move(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {kind: tensor.to(device, non_blocking=True) for kind, tensor in tensors.items()}

        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            labels_BT=self.labels_BT.to(device, non_blocking=True),
            attention_mask_BT=self.attention_mask_BT.to(device, non_blocking=True),
            media=move(self.media),
            features=move(self.features),
            source_B=self.source_B.to(device, non_blocking=True),
            task_B=self.task_B.to(device, non_blocking=True),
        )

    def inputs(self) -> dict[str, object]:
        """Returns the keyword arguments of the model's forward; without media of any kind None stands there."""
        return {
            "input_ids_BT": self.input_ids_BT,
            "labels_BT": self.labels_BT,
            "attention_mask_BT": self.attention_mask_BT,
            "media": self.media or None,
            "features": self.features or None,
            "task_B": self.task_B,
        }


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Returns a batch of the samples, in their order.

    No samples give a batch of no rows; a model runs all its parts on it all the same, since where parameters are
    sharded a process that skipped a forward would leave the others waiting.

    Raises:
        ValueError: Of one kind some samples bring media and others features.
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
    media, features = _join([row.media for row in rows]), _join([row.features for row in rows])
    if both := media.keys() & features.keys():
        raise ValueError(
            f"a batch mixes {', '.join(sorted(both))} as such and as cached features; "
            "encode all sources of the mixture or none"
        )
    return Batch(
        input_ids_BT=input_ids_BT,
        labels_BT=labels_BT,
        attention_mask_BT=attention_mask_BT,
        media=media,
        features={kind: tensor.float() for kind, tensor in features.items()},
        source_B=torch.tensor([row.source for row in rows], dtype=torch.int64),
        task_B=torch.tensor([row.task for row in rows], dtype=torch.int64),
        keys=tuple(row.key for row in rows),
        domains=tuple(row.domain for row in rows),
        num_samples=len(samples),
        # The first position of a sequence is predicted by nothing, so it is no target whatever its label.
        num_targets=int((labels_BT[:, 1:] != IGNORE_ID).sum()),
        num_tokens=sum(i >= 0 for row in samples for i in row.input_ids),
    )


def _join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    views = sorted({view for part in parts for view in part}, key=lambda view: (ORDER.index(kind_of(view)), view))
    return {view: torch.cat([part[view] for part in parts if view in part]) for view in views}
