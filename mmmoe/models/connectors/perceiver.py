"""A perceiver: learned queries read any number of features and come out as a fixed number of tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmmoe.models.connectors.perceiver_spec import PerceiverSpec

EPSILON = 1e-12
"""Of all norms, as in BERT."""
WEIGHT_STD = 0.02
"""Deviation of fresh weights, as in BERT; biases start at zero."""


class PerceiverAttention(nn.Module):
    """Attention from queries to a source; what is found is added to the queries and the sum normalised.

    Suffix X stands for the channels of one head. Queries and keys of a head share one norm over all heads.
    """

    def __init__(self, spec: PerceiverSpec, source_channels: int) -> None:
        super().__init__()
        self.heads, self.probability_dropout = spec.heads, spec.dropout
        self.q_proj = nn.Linear(spec.width, spec.width)
        self.k_proj = nn.Linear(source_channels, spec.width)
        self.v_proj = nn.Linear(source_channels, spec.width)
        head = spec.width // spec.heads
        self.q_norm: nn.Module = nn.LayerNorm(head, eps=EPSILON) if spec.qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(head, eps=EPSILON) if spec.qk_norm else nn.Identity()
        self.out_proj = nn.Linear(spec.width, spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        self.norm = nn.LayerNorm(spec.width, eps=EPSILON)

    def forward(self, x_IQC: Tensor, source_IPC: Tensor, mask_IP: Tensor | None = None) -> Tensor:
        """Returns the queries (I, Q, C); one row of them may stand for all images of the source."""
        query_IHQX, key_IHPX, value_IHPX = (
            rearrange(part, "i p (h x) -> i h p x", h=self.heads)
            for part in (self.q_proj(x_IQC), self.k_proj(source_IPC), self.v_proj(source_IPC))
        )
        found_IHQX = F.scaled_dot_product_attention(
            self.q_norm(query_IHQX).expand(len(source_IPC), -1, -1, -1),
            self.k_norm(key_IHPX),
            value_IHPX,
            attn_mask=None if mask_IP is None else mask_IP[:, None, None, :],
            dropout_p=self.probability_dropout if self.training else 0.0,
        )
        found_IQC = self.out_proj(rearrange(found_IHQX, "i h q x -> i q (h x)"))
        out_IQC: Tensor = self.norm(x_IQC + self.dropout(found_IQC))
        return out_IQC


class PerceiverLayer(nn.Module):
    """Self-attention of the queries, a look at the features in some layers, a feed-forward block; norms at the end."""

    def __init__(self, spec: PerceiverSpec, channels: int | None) -> None:
        super().__init__()
        inner = spec.inner or 4 * spec.width
        self.attention = PerceiverAttention(spec, spec.width)
        self.cross_attention = None if channels is None else PerceiverAttention(spec, channels)
        self.up_proj = nn.Linear(spec.width, inner)
        self.down_proj = nn.Linear(inner, spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        self.norm = nn.LayerNorm(spec.width, eps=EPSILON)

    def forward(self, x_IQC: Tensor, features_IPC: Tensor, mask_IP: Tensor | None) -> Tensor:
        """Returns the queries (I, Q, C)."""
        x_IQC = self.attention(x_IQC, x_IQC)
        if self.cross_attention is not None:
            x_IQC = self.cross_attention(x_IQC, features_IPC, mask_IP)
        update_IQC = self.down_proj(F.gelu(self.up_proj(x_IQC)))
        out_IQC: Tensor = self.norm(x_IQC + self.dropout(update_IQC))
        return out_IQC


class PerceiverResampler(nn.Module):
    """BLIP-2's Q-former without words (arXiv 2301.12597), as MM-Interleaved and TextHarmony use it.

    Queries are normalised first and have no order. Until the first layer reads features they are the same for every
    image, and are computed once.
    """

    def __init__(self, spec: PerceiverSpec, channels: int, out: int | None = None) -> None:
        """Draws fresh weights.

        Args:
            spec: the declaration.
            channels: of the features.
            out: width of the tokens, by a linear layer after the last; None: the tokens are as wide as the layers.
        """
        super().__init__()
        self.num_tokens = spec.queries
        self.recompute = False
        self.queries_1QC = nn.Parameter(torch.empty(1, spec.queries, spec.width))
        self.norm = nn.LayerNorm(spec.width, eps=EPSILON)
        self.dropout = nn.Dropout(spec.dropout)
        reads = [number % spec.cross_attention_every == 0 for number in range(spec.layers)]
        self.layers = nn.ModuleList(PerceiverLayer(spec, channels if each else None) for each in reads)
        self.projector = None if out is None else nn.Linear(spec.width, out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=WEIGHT_STD)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.queries_1QC, std=spec.query_std)

    def forward(self, features_IPC: Tensor, mask_IP: Tensor | None = None) -> Tensor:
        """Returns the tokens (I, Q, D).

        Args:
            features_IPC: what is read; order means nothing beyond what is in them.
            mask_IP: which may be read, None for all; an image without any reads all, so that nothing is undefined.
        """
        if mask_IP is not None:
            mask_IP = mask_IP.bool()
            mask_IP = mask_IP | ~mask_IP.any(1, keepdim=True)
        features_IPC = features_IPC.to(self.queries_1QC.dtype)
        x_IQC: Tensor = self.dropout(self.norm(self.queries_1QC))
        for layer in self.layers:
            if self.recompute and self.training and torch.is_grad_enabled():
                x_IQC = checkpoint(layer, x_IQC, features_IPC, mask_IP, use_reentrant=False)
            else:
                x_IQC = layer(x_IQC, features_IPC, mask_IP)
        return x_IQC if self.projector is None else self.projector(x_IQC)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each layer in the backward pass, in training mode."""
        self.recompute = enabled
