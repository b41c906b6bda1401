"""How TextHarmony's visual tokenizer is declared: what stands between a pyramid of features and the language model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmmoe.config.spec import Spec
from mmmoe.models.connectors.perceiver_spec import PerceiverSpec


class VisualTokenizerSpec(Spec):
    """Positions for tokens and maps, and a perceiver that turns an image's tokens into those of the language model."""

    kind: Literal["visual_tokenizer"] = "visual_tokenizer"
    perceiver: PerceiverSpec | None = PerceiverSpec()
    """What reads the tokens; its queries are an image's tokens in the language model. null (ours): the class token and
    the patches are, projected; a training of minutes is too short for queries to find what they should look at."""
    position_grid: int = Field(default=16, ge=1)
    """Side of the fixed table of sines and cosines, which is interpolated to tokens and maps. The release has 16
    whatever the image's size: 224 pixels are 16 patches of 14."""
    projector_std: float = Field(default=1e-3, gt=0.0)
    """Deviation of fresh weights of the last linear layer; small, so that fresh tokens disturb little."""
