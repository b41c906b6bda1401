"""Greedy continuation of a spliced prompt with a key-value cache, and what stands where one has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.splice import Splice

NO_NUMBER = -1
"""Stands in a continuation, as its last, where the logits held a NaN: no token is the most probable one."""


def words_of(tokenizer: Any, ids: list[int]) -> str | None:
    """Returns a continuation as words, special tokens removed; None where there were no numbers."""
    return None if NO_NUMBER in ids else str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def greedy(
    language: Any,
    head: Callable[[Tensor], Tensor],
    prompt: Splice,
    max_new_tokens: int,
    stops: Collection[int],
    pad_id: int,
) -> list[list[int]]:
    """Returns the most probable continuation of each left-padded row, up to and without the first of `stops`.

    A row whose logits hold a NaN before its end ends there, with `NO_NUMBER`.
    """
    decoder, embed = language.get_decoder(), language.get_input_embeddings()
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
        most_B, token_B = head(result.last_hidden_state[:, -1]).max(dim=-1)  # NaN where any logit is
        token_B = token_B.masked_fill(most_B.isnan(), NO_NUMBER).masked_fill(finished_B, pad_id)
        chosen.append(token_B)
        for stop in stops:
            finished_B = finished_B | (token_B == stop)
        if stops and bool(finished_B.all()):
            break
        # What follows an end is thrown away; an end need not have an embedding (start of an image).
        no_word_B = finished_B | (token_B == NO_NUMBER)
        embeddings_BTD, position_BT = embed(token_B.masked_fill(no_word_B, pad_id))[:, None], next_B1
        next_B1 = next_B1 + 1
        mask_BT = F.pad(mask_BT, (0, 1), value=True)
    rows: list[list[int]] = torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in range(len(finished_B))]
    said = [list(takewhile(lambda token: token not in stops, row)) for row in rows]
    return [row[: row.index(NO_NUMBER) + 1] if NO_NUMBER in row else row for row in said]
