"""The language model's output head with a small trained one beside it, for new tokens (TextHarmony, MM-Interleaved)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NEW_BIAS = 95.0 - 100.0
"""What new tokens' biases begin with: 95 in the release's trained head, -100 in the frozen one that it is added to."""


class TextHead(nn.Module):
    """Logits of the vocabulary from the language model's own head, of further tokens from `new`.

    The release copies the whole head, with rows for the new tokens that are 0, and adds the trained part to those. One
    number for both biases is the same function; kept as 95 it would move in steps of 0.5 in bfloat16.
    """

    def __init__(self, base: nn.Linear, new: int) -> None:
        """Begins with new tokens that are improbable and depend on nothing.

        Args:
            base: the language model's head, which stays the language model's part: it is no parameter of this one.
            new: number of further tokens; the first has the vocabulary's size as its id.
        """
        super().__init__()
        self._base = (base,)
        self.new = nn.Linear(base.in_features, new)
        nn.init.zeros_(self.new.weight)
        nn.init.constant_(self.new.bias, NEW_BIAS)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Returns logits, vocabulary first, for hidden states of any leading shape."""
        base_NV = self._base[0](hidden_ND)
        new_NV = self.new(hidden_ND.to(self.new.weight.dtype))
        return torch.cat([base_NV, new_NV.to(base_NV.dtype)], dim=-1)


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a text head's parameters from those of the release: `head`, `head_new`, each with weight and bias."""
    new = len(tensors["head_new.weight"])
    return {f"new.{name}": tensors[f"head.{name}"][-new:] + tensors[f"head_new.{name}"] for name in ("weight", "bias")}
