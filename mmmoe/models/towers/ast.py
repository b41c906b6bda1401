"""Audio Spectrogram Transformer (arXiv 2104.01778): a pretrained encoder of sound that is not speech.

Uni-MoE takes BEATs (arXiv 2212.09058) here, of which no maintained library has an implementation. AST is what
transformers has: the same input (Kaldi's filter bank of 128 bands at 16 kHz), the same training set (AudioSet), the
same width (768). Another encoder is another file beside this one and a line in `build.TOWERS`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ASTModel

from mmmoe.models.folder import declared_config, pretrained, state_digest
from mmmoe.models.towers.spec import ASTTowerSpec
from mmmoe.models.towers.tower import SoundTower
from mmmoe.paths import resolve


class ASTTower(SoundTower):
    """The last hidden state of the patches, after the last norm; the two class tokens are left out.

    A patch is 16 bands times 16 frames, every 10 of each, so 10 s make 12 * 101 = 1212 vectors.
    """

    kind = "audio"

    def __init__(self, spec: ASTTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "tower", ("audio-spectrogram-transformer",))
        self.num_mels, self.max_frames = int(config.num_mel_bins), int(config.max_length)
        if spec.chunk_seconds * 100 > self.max_frames:
            raise ValueError(
                f"tower.chunk_seconds is {spec.chunk_seconds}, but this AST takes {self.max_frames} frames of 10 ms; "
                f"give at most {self.max_frames / 100:g}"
            )
        if spec.path is None or meta:
            self.encoder: Any = ASTModel(config)
            weights = state_digest(self.encoder)
        else:
            self.encoder, weights = pretrained(ASTModel, spec.path, spec.config, "tower.config", "AST")
            self.mean, self.std = _normalisation(resolve(spec.path), (self.mean, self.std))
        self.channels = int(config.hidden_size)
        self.num_tokens = self.encoder.embeddings.position_embeddings.shape[1] - 2
        self.chunk_seconds, self.max_chunks = spec.chunk_seconds, spec.max_chunks
        self.key = f"ast-{weights}-{spec.chunk_seconds:g}s"
        self.freeze()

    def forward(self, bank_ATF: Tensor) -> Tensor:
        """Returns features (A, P, C) of filter banks (A, frames, mel)."""
        dtype = self.encoder.embeddings.position_embeddings.dtype
        hidden_APC: Tensor = self.encoder(bank_ATF.to(dtype)).last_hidden_state
        return hidden_APC[:, 2:]


def _normalisation(folder: Path, usual: tuple[float, float]) -> tuple[float, float]:
    """Returns the mean and half deviation that the folder's feature extractor states, if it has one."""
    file = folder / "preprocessor_config.json"
    stated = json.loads(file.read_text()) if file.is_file() else {}
    return float(stated.get("mean", usual[0])), float(stated.get("std", usual[1]))
