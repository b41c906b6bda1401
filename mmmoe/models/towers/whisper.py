"""The encoder of a Whisper model (arXiv 2212.04356): what Uni-MoE hears speech with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmmoe.models.folder import declared_config, pretrained, state_digest
from mmmoe.models.towers.spec import WhisperTowerSpec
from mmmoe.models.towers.tower import SoundTower

FRAMES_A_POSITION = 2


class WhisperTower(SoundTower):
    """The last hidden state, a vector every 20 ms of a chunk, or means over `pool` of them.

    Chunks shorter than Whisper's 30 s take the first rows of its table of positions, and cost in proportion.
    """

    kind = "speech"

    def __init__(self, spec: WhisperTowerSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "tower", ("whisper",))
        if spec.num_positions > config.max_source_positions:
            raise ValueError(
                f"tower.chunk_seconds is {spec.chunk_seconds}, but this Whisper has {config.max_source_positions} "
                f"positions of 20 ms; give at most {config.max_source_positions / 50:g}"
            )
        if spec.path is None or meta:
            self.encoder: Any = WhisperEncoder(config)
            weights = state_digest(self.encoder)
        else:
            model, weights = pretrained(WhisperModel, spec.path, spec.config, "tower.config", "Whisper", "encoder.")
            self.encoder = model.encoder
        self._shorten(spec.num_positions)
        self.pool = spec.pool
        self.num_mels = int(config.num_mel_bins)
        self.channels = int(config.d_model)
        self.num_tokens = spec.num_positions // spec.pool
        self.chunk_seconds, self.max_chunks = spec.chunk_seconds, spec.max_chunks
        self.max_frames = spec.num_positions * FRAMES_A_POSITION
        self.key = f"whisper-{weights}-{spec.chunk_seconds:g}s-pool{spec.pool}"
        self.freeze()

    def forward(self, mel_AMT: Tensor) -> Tensor:
        """Returns features (A, P, C) of log-mel spectrograms (A, mel, frames)."""
        hidden_APC: Tensor = self.encoder(mel_AMT.to(self.encoder.conv1.weight.dtype)).last_hidden_state
        return hidden_APC.view(len(hidden_APC), self.num_tokens, self.pool, self.channels).mean(2)

    def _shorten(self, positions: int) -> None:
        """Keeps the first positions; the encoder takes the length of its input from its table and its configuration."""
        table_PC = self.encoder.embed_positions.weight
        if positions < table_PC.shape[0]:
            shorter = nn.Embedding(positions, table_PC.shape[1], device=table_PC.device, dtype=table_PC.dtype)
            shorter.weight = nn.Parameter(table_PC.detach()[:positions].clone(), requires_grad=False)
            self.encoder.embed_positions = shorter
            self.encoder.config.max_source_positions = positions
