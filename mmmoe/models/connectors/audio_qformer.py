"""Uni-MoE's audio connector: a Q-former of BLIP-2 whose learned queries read a chunk's features, then a linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mmmoe.models.spec import AudioQFormerSpec


class AudioQFormer(nn.Module):
    """A fixed number of tokens a chunk, whatever the number of its features (Uni-MoE, arXiv 2405.11273, section 3.2).

    Queries are normalised, see each other in every layer (no order, no causality) and the features in every second one.
    The paper speaks of four layers, its code has twelve; the code's queries start at zero, where they are all alike
    and their normalisation multiplies gradients by 1e6, so both numbers are fields of the spec.
    """

    def __init__(self, spec: AudioQFormerSpec, channels: int, width: int) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=spec.width,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            intermediate_size=spec.inner or 4 * spec.width,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=spec.dropout,
            cross_attention_frequency=spec.cross_attention_every,
            encoder_hidden_size=channels,
            vocab_size=1,  # a table of words that this use of the model has not
        )
        self.num_tokens = spec.queries
        self.queries_1QC = nn.Parameter(torch.zeros(1, spec.queries, spec.width))
        if spec.query_std > 0:
            nn.init.normal_(self.queries_1QC, std=spec.query_std)
        self.qformer = Blip2QFormerModel(config)
        self.projector = nn.Linear(spec.width, width)

    def forward(self, features_IPC: Tensor) -> Tensor:
        """Returns the tokens (I, Q, D) of the chunks."""
        queries_IQC = self.queries_1QC.expand(features_IPC.shape[0], -1, -1)
        found = self.qformer(query_embeds=queries_IQC, encoder_hidden_states=features_IPC.to(queries_IQC.dtype))
        tokens_IQD: Tensor = self.projector(found.last_hidden_state)
        return tokens_IQD
