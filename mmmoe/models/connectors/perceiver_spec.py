"""How a perceiver is declared: how many learned queries read features, through how many layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec


class PerceiverSpec(Spec):
    """Learned queries that read features: BLIP-2's Q-former, its queries and keys normalised where asked for.

    Defaults are TextHarmony's visual tokenizer. Its image decoder has queries 77, layers 1, width 1024, heads 16,
    inner 3072, cross_attention_every 1 and qk_norm false.
    """

    kind: Literal["perceiver"] = "perceiver"
    queries: int = Field(default=512, ge=1)
    """Tokens that come out."""
    layers: int = Field(default=12, ge=1)
    """Layers, each a self-attention of the queries and a feed-forward block, some with a look at the features."""
    width: int = Field(default=768, ge=1)
    """Width of the layers."""
    heads: int = Field(default=12, ge=1)
    """Attention heads of a layer."""
    inner: int | None = Field(default=None, ge=1)
    """Width of the feed-forward blocks; null means four times `width`."""
    cross_attention_every: int = Field(default=2, ge=1)
    """Of so many layers the first reads the features."""
    qk_norm: bool = True
    """Normalise queries and keys of each head before they meet."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In training. The release leaves BLIP-2's 0.1 in its visual tokenizer and sets 0 in its image decoder."""
    query_std: float = Field(default=0.02, gt=0.0)
    """Standard deviation of fresh queries."""

    @model_validator(mode="after")
    def _heads_divide(self) -> PerceiverSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self
