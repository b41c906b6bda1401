"""Uni-MoE (arXiv 2405.11273): one language model reads images, videos, speech and sound, each through its encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.tower import Tower

KINDS = ("image", "video", "speech", "audio")


class UniMoE(SplicedModel):
    """Towers and connectors by kind, and a language model; `add_adapters` makes it a mixture of experts.

    A video is some frames that go through the image's tower and connector; the mean of their tokens is the video's, so
    it takes as many positions as an image. Speech and sound are cut into chunks by the data; a chunk is an item.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        connectors: Mapping[str, nn.Module],
        language: nn.Module,
        max_positions: int,
        frames: int | None,
    ) -> None:
        super().__init__(language, max_positions)
        self.towers = nn.ModuleDict(towers)
        self.connectors = nn.ModuleDict(connectors)
        self.frames = frames or 0
        self.kinds = tuple(kind for kind in KINDS if kind in towers or (kind == "video" and frames is not None))

    def tower_of(self, kind: str) -> Tower:
        """Returns the encoder of a kind; a video's is that of images."""
        # By attribute: an engine that shards parameters takes towers out of the tree and leaves them as attributes.
        tower: Tower = getattr(self.towers, _part(kind))
        return tower

    def encode(self, kind: str, media: Tensor) -> Tensor:
        """Returns features (I, P, C) of raw inputs; of videos (V, F, C, H, W) those of each frame (V, F, P, C)."""
        if kind != "video":
            return super().encode(kind, media)
        frames_FPC = super().encode(kind, media.flatten(0, 1))
        return frames_FPC.view(*media.shape[:2], *frames_FPC.shape[1:])

    def connect(self, kind: str, features: Tensor) -> Tensor:
        """Returns tokens (I, M, D); those of a video are the mean over its frames, taken after the connector."""
        connector = self.connectors[_part(kind)]
        if kind != "video":
            tokens_IMD: Tensor = connector(features)
            return tokens_IMD
        frames_FMD: Tensor = connector(features.flatten(0, 1))
        return frames_FMD.view(*features.shape[:2], *frames_FMD.shape[1:]).mean(1)

    def positions(self, kind: str) -> int:
        """Returns the positions of an image, a video or a chunk."""
        if kind in ("image", "video"):
            return self.tower_of(kind).num_tokens
        return int(self.connectors[kind].num_tokens)  # type: ignore[arg-type]  # torch types attributes as tensors

    def blank(self, kind: str) -> Tensor:
        """Returns features of one item; of a video those of one frame."""
        features = super().blank(kind)
        return features.unsqueeze(1) if kind == "video" else features


def _part(kind: str) -> str:
    return "image" if kind == "video" else kind
