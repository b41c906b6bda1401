"""Negative log-likelihood of target tokens, with logits computed at target positions only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.config.ids import IGNORE_ID


def target_nll(hidden_BTD: Tensor, labels_BT: Tensor | None, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns each sample's summed -log p (float32) and its number of targets; position t predicts label t + 1.

    Answers are a small part of most sequences, so the vocabulary-wide logits of the rest are never made. Without
    targets the result is zero but still connected to the hidden states.
    """
    batch = hidden_BTD.shape[0]
    if labels_BT is None:
        labels_BT = torch.full(hidden_BTD.shape[:2], IGNORE_ID, dtype=torch.int64, device=hidden_BTD.device)
    next_BT = labels_BT[:, 1:]
    is_target_BT = next_BT != IGNORE_ID
    row_N, column_N = is_target_BT.nonzero(as_tuple=True)
    logits_NV = head(hidden_BTD[row_N, column_N])
    nll_N = F.cross_entropy(logits_NV.float(), next_BT[row_N, column_N], reduction="none")
    nll_B = torch.zeros(batch, dtype=torch.float32, device=hidden_BTD.device).index_add(0, row_N, nll_N)
    return nll_B, is_target_BT.sum(1)
