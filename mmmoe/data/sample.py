"""One dialogue ready for a batch: ids, labels and its media as the towers take them, or as features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """What the dataset hands to the collator."""

    input_ids: list[int]
    """A negative id (MEDIA_IDS) stands for each image, video, and chunk of speech or audio."""
    labels: list[int]
    """IGNORE_ID where there is no target, IMAGE_ID at an image that is to be drawn; not shifted."""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    """By kind, what stands at its placeholders, in reading order along the first axis."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """In place of media of that kind, the tower's features of it."""
    source: int = 0
    """Number of the source in its mixture."""
    key: str = ""
    domain: str = ""
    task: int = -1
    """Number of the answer's task (`config/ids.TASKS`), for families that treat tasks differently."""
