"""EfficientNet-Lite0 on the filter-bank picture of a chunk of sound: small, fast on a CPU, needs no further weights."""

from __future__ import annotations

import math

from torch import Tensor

from mmmoe.models.towers.efficientnet_lite0 import EfficientNetLite0
from mmmoe.models.towers.spec import SpectrogramTowerSpec
from mmmoe.models.towers.tower import SoundTower

FRAMES_A_SECOND = 100


class SpectrogramEfficientNetTower(EfficientNetLite0, SoundTower):
    """Cells of 32 bands times 0.32 s; a filter bank normalised as AST's lies about where the network's pixels do."""

    kind = "audio"

    def __init__(self, spec: SpectrogramTowerSpec, *, meta: bool = False) -> None:
        super().__init__(spec.stride16, meta=meta)
        self.num_mels, self.chunk_seconds, self.max_chunks = spec.num_mels, spec.chunk_seconds, spec.max_chunks
        columns = math.ceil(spec.chunk_seconds * FRAMES_A_SECOND / 32)
        self.max_frames = 32 * columns
        self.num_tokens = (spec.num_mels // 32) * columns
        stride = 16 if spec.stride16 else 32
        self.key = f"spectrogram-efficientnet_lite0-{self.weights}-{spec.num_mels}x{self.max_frames}-stride{stride}"

    def forward(self, bank_ATF: Tensor) -> Tensor:
        """Returns features (A, P, C) of filter banks (A, frames, mel), cells in order of bands, then of time."""
        return self.cells(bank_ATF.transpose(1, 2).unsqueeze(1).expand(-1, 3, -1, -1))
