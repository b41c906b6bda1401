"""What an image is drawn from: the hidden states before it, latest first, and the maps of the image before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmmoe.models.position_tables import sincos

EMPTY_STD = 0.02
"""Deviation of the fresh tokens of nothing."""


def reversed_context(hidden_BTD: Tensor, row_I: Tensor, first_I: Tensor, last_I: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each image's context (I, L, D), the latest position first, and its mask (I, L); zeros fill it up.

    Args:
        hidden_BTD: last hidden states of the language model.
        row_I: the image's row.
        first_I: where its context begins: the beginning of the sequence it stands in.
        last_I: its start-of-image position, with which the context ends.
    """
    length_I = last_I - first_I + 1
    longest = int(length_I.max()) if len(length_I) else 0
    place_L = torch.arange(longest, device=hidden_BTD.device)
    mask_IL = place_L < length_I[:, None]
    column_IL = (last_I[:, None] - place_L).clamp(min=0)
    hidden_ILD = hidden_BTD[row_I[:, None], column_IL]
    return hidden_ILD.masked_fill(~mask_IL[..., None], 0.0), mask_IL


def places_in_context(column_IN: Tensor, last_I: Tensor) -> Tensor:
    """Returns where columns of a row stand in an image's context (`reversed_context`); what is negative becomes -1."""
    return (last_I[:, None] - column_IN).masked_fill(column_IN < 0, -1)


@dataclass(frozen=True)
class PreviousMaps:
    """The maps of the image before each image."""

    maps: list[Tensor]
    """By level, (I, S, C); zeros where there is no such image."""
    mask_I: Tensor
    """True where there is one."""

    def repeat(self, times: int) -> PreviousMaps:
        """Returns the same for several copies of the images, one after the other."""
        return PreviousMaps([map_ISC.repeat(times, 1, 1) for map_ISC in self.maps], self.mask_I.repeat(times))


class ContextProjection(nn.Module):
    """A linear layer and 1-D sin-cos positions, counted from the image backwards (MM-Interleaved's context features).

    Positions are added behind the mask, too, as in the authors' code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)

    def forward(self, hidden_ILD: Tensor) -> Tensor:
        """Returns context features (I, L, D)."""
        features_ILD: Tensor = self.projection(hidden_ILD)
        place_L = torch.arange(features_ILD.shape[1], device=features_ILD.device)
        position_LD = sincos(place_L, features_ILD.shape[2])
        return features_ILD + position_LD.to(features_ILD.dtype)


class EmptyContext(nn.Module):
    """What is read in the place of a context's tokens by an image that is to be drawn from nothing."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.tokens_1QC = nn.Parameter(torch.randn(1, queries, width) * EMPTY_STD)

    def forward(self, told_IQC: Tensor, is_blind_I: Tensor) -> Tensor:
        """Returns the tokens, replaced where an image is blind."""
        return torch.where(is_blind_I[:, None, None], self.tokens_1QC, told_IQC)
