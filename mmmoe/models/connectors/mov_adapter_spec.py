"""How the MoV-Adapter is declared: how deep, how experts are weighed, how many tokens leave it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmmoe.config.spec import Spec

Side = Annotated[int, Field(ge=1)]


class MoVAdapterSpec(Spec):
    """MoVA's MoV-Adapter (arXiv 2404.13046): the base tower's tokens read the maps of the experts routed to an image.

    Heads are of 64 channels, as the rotary table demands, so the base tower's channels decide how many there are.
    """

    kind: Literal["mov_adapter"] = "mov_adapter"
    layers: int = Field(default=3, ge=1)
    """Blocks, each with a gate, one cross-attention an expert, a self-attention and a feed-forward layer."""
    top_k: int = Field(default=3, ge=1)
    """Of the experts routed to an image, so many of the largest weight are mixed in a block."""
    gate: Literal["learned", "uniform"] = "learned"
    """learned: weights from the questions and the image; uniform: every routed expert counts alike, so that nothing
    ranks them and top_k plays no part (the paper's ablation)."""
    token_grid: tuple[Side, Side] | None = None
    """Rows and columns of the tokens for the language model; null: half of the base tower's, rounded down."""
