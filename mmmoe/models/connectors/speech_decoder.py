"""Uni-MoE's speech connector: blocks of a Whisper decoder fed with learned queries instead of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from mmmoe.models.folder import pretrained
from mmmoe.models.spec import SpeechDecoderSpec


class SpeechDecoder(nn.Module):
    """A fixed number of tokens a chunk (Uni-MoE, arXiv 2405.11273, and its code's `audio_aligner/whisper_decoder.py`).

    A query sees itself and those before it, gets the decoder's learned position vector, and reads all features of the
    chunk in every block; a linear layer follows. The table of words is left out and the table of positions is as long
    as there are queries, so that every weight takes part.
    """

    def __init__(self, spec: SpeechDecoderSpec, channels: int, width: int, *, meta: bool = False) -> None:
        super().__init__()
        self.num_tokens = spec.queries
        self.inlet = nn.Linear(channels, spec.width) if channels != spec.width else None
        self.queries_1QC = nn.Parameter(torch.zeros(1, spec.queries, spec.width))
        if spec.query_std > 0:
            nn.init.normal_(self.queries_1QC, std=spec.query_std)
        self.decoder = _decoder(spec)
        if spec.path is not None and not meta:
            self.decoder.load_state_dict(_read(spec))
        self.projector = nn.Linear(spec.width, width)

    def forward(self, features_IPC: Tensor) -> Tensor:
        """Returns the tokens (I, Q, D) of the chunks."""
        queries_IQC = self.queries_1QC.expand(features_IPC.shape[0], -1, -1)
        features_IPC = features_IPC.to(queries_IQC.dtype)
        if self.inlet is not None:
            features_IPC = self.inlet(features_IPC)
        found = self.decoder(inputs_embeds=queries_IQC, encoder_hidden_states=features_IPC, use_cache=False)
        tokens_IQD: Tensor = self.projector(found.last_hidden_state)
        return tokens_IQD


def _decoder(spec: SpeechDecoderSpec) -> nn.Module:
    fields = spec.whisper_fields()
    fields.pop("model_type")
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(**fields, **ids, max_target_positions=spec.queries, dropout=spec.dropout, vocab_size=1)
    decoder: nn.Module = WhisperDecoder(config)
    del decoder.embed_tokens  # never read: queries come as embeddings
    return decoder


def _read(spec: SpeechDecoderSpec) -> dict[str, Tensor]:
    """Returns a Whisper folder's decoder weights, as many positions as there are queries.

    Raises:
        ValueError: The folder is none, or of other sizes than the spec says.
    """
    assert spec.path is not None
    whisper, _ = pretrained(
        WhisperModel, spec.path, spec.whisper_fields(), "the connector's sizes", "Whisper", "decoder."
    )
    state: dict[str, Tensor] = whisper.decoder.state_dict()
    positions_PC = state["embed_positions.weight"]
    if spec.queries > len(positions_PC):
        raise ValueError(f"connector.queries is {spec.queries}, but {spec.path} has {len(positions_PC)} positions")
    state.pop("embed_tokens.weight")
    return state | {"embed_positions.weight": positions_PC[: spec.queries]}
