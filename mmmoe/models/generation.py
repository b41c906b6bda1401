"""Greedy continuation of a spliced prompt with a key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.splice import Splice


def greedy(language: Any, prompt: Splice, max_new_tokens: int, eos_id: int | None, pad_id: int) -> list[list[int]]:
    """Returns the most probable continuation of each left-padded row, up to and without the end token."""
    decoder, head, embed = language.get_decoder(), language.get_output_embeddings(), language.get_input_embeddings()
    embeddings_BTD, mask_BT, position_BT = prompt.embeddings_BTD, prompt.mask_BT, prompt.position_BT
    next_B1 = mask_BT.sum(1, keepdim=True)
    finished_B = torch.zeros(mask_BT.shape[0], dtype=torch.bool, device=mask_BT.device)
    cache, chosen = None, list[Tensor]()
    for _ in range(max_new_tokens):
        result = decoder(
            inputs_embeds=embeddings_BTD,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
        )
        cache = result.past_key_values
        token_B = head(result.last_hidden_state[:, -1]).argmax(dim=-1).masked_fill(finished_B, pad_id)
        chosen.append(token_B)
        if eos_id is not None:
            finished_B = finished_B | (token_B == eos_id)
            if bool(finished_B.all()):
                break
        embeddings_BTD, position_BT = embed(token_B)[:, None], next_B1
        next_B1 = next_B1 + 1
        mask_BT = F.pad(mask_BT, (0, 1), value=True)
    rows: list[list[int]] = torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in range(len(finished_B))]
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
