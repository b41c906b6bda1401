"""Beam search over a spliced prompt, for whole batches: the likeliest of several continuations of each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmmoe.models.generation import NO_NUMBER
from mmmoe.models.splice import Splice


@dataclass
class _Row:
    """What is finished of one row's continuations."""

    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    """Mean log-likelihood of a token, the end among them, and the tokens without the end."""
    is_done: bool = False
    """Nothing is filed any more, so that a row's answer does not depend on how long others take."""
    broken: list[int] | None = None
    """What was said until its logits held a NaN, if they did before it was done."""

    def best(self) -> float:
        """Returns the likelihood of the best, -inf where nothing is finished."""
        return max((likelihood for likelihood, _ in self.ended), default=float("-inf"))


def beam_search(
    language: Any,
    head: Callable[[Tensor], Tensor],
    prompt: Splice,
    beams: int,
    max_new_tokens: int,
    stops: Collection[int],
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Returns for each left-padded row the continuation of greatest mean log-likelihood, without its end.

    With one beam it is the greedy one. Rows do not depend on one another. As in transformers a continuation ends only
    where that is among the likeliest `beams`. A repetition penalty p divides positive logits of tokens that a
    continuation has already, and multiplies negative ones (CTRL, arXiv 1909.05858). A row whose logits hold a NaN
    before it is done ends there, with `NO_NUMBER`.
    """
    decoder, embed = language.get_decoder(), language.get_input_embeddings()
    batch, device = len(prompt.mask_BT), prompt.mask_BT.device
    rows = [_Row() for _ in range(batch)]
    result = decoder(
        inputs_embeds=prompt.embeddings_BTD,
        attention_mask=prompt.mask_BT,
        position_ids=prompt.position_BT,
        use_cache=True,
    )
    cache = result.past_key_values
    cache.batch_repeat_interleave(beams)
    hidden_ND = result.last_hidden_state[:, -1].repeat_interleave(beams, dim=0)
    mask_NT = prompt.mask_BT.repeat_interleave(beams, dim=0)
    next_N1 = mask_NT.sum(1, keepdim=True)
    # Of equal beams one counts, or all would be the same.
    score_BK = torch.full((batch, beams), float("-inf"), device=device)
    score_BK[:, 0] = 0.0
    tokens_NL = torch.zeros(batch * beams, 0, dtype=torch.int64, device=device)
    for length in range(1, max_new_tokens + 1):
        logp_NV = _penalised(head(hidden_ND).float(), tokens_NL, repetition_penalty).log_softmax(dim=-1)
        vocabulary = logp_NV.shape[-1]
        total_BW = (score_BK[:, :, None] + logp_NV.view(batch, beams, vocabulary)).flatten(1)
        # At most `beams` continuations can end here for each stop, so this many leave as many that go on.
        best_BC, place_BC = total_BW.topk(min(beams * (1 + len(stops)), total_BW.shape[1]), dim=1)
        parent_NK, token_NK, score_BK = _kept(rows, tokens_NL, best_BC, place_BC, beams, vocabulary, stops, length)
        for number, row in enumerate(rows):
            row.is_done = row.is_done or _is_done(row, float(score_BK[number].max()), length)
        if all(row.is_done for row in rows):
            break
        tokens_NL = torch.cat([tokens_NL[parent_NK], token_NK[:, None]], dim=1)
        if length == max_new_tokens:
            break
        cache.reorder_cache(parent_NK)
        mask_NT = torch.cat([mask_NT[parent_NK], mask_NT.new_ones(len(mask_NT), 1)], dim=1)
        result = decoder(
            inputs_embeds=embed(token_NK)[:, None],
            attention_mask=mask_NT,
            position_ids=next_N1 + length - 1,
            past_key_values=cache,
            use_cache=True,
        )
        cache, hidden_ND = result.past_key_values, result.last_hidden_state[:, -1]
    return [_answer(row, number, score_BK, tokens_NL, beams) for number, row in enumerate(rows)]


def _kept(
    rows: list[_Row],
    tokens_NL: Tensor,
    best_BC: Tensor,
    place_BC: Tensor,
    beams: int,
    vocabulary: int,
    stops: Collection[int],
    length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Files what ended and returns of what goes on the beams (N,) it came from, its tokens (N,) and scores (B, K)."""
    parents, tokens, scores = list[int](), list[int](), list[list[float]]()
    for number, row in enumerate(rows):
        going: list[tuple[int, int, float]] = []
        found = list(zip(best_BC[number].tolist(), place_BC[number].tolist(), strict=True))
        if not row.is_done and math.isnan(found[0][0]):  # it counts as the largest
            row.broken, row.is_done = [*tokens_NL[number * beams].tolist(), NO_NUMBER], True
        for rank, (score, place) in enumerate(found):
            beam, token = divmod(place, vocabulary)
            if score == float("-inf"):
                continue
            if token in stops:
                # Those behind the first `beams` are looked at to find enough that go on, not to end there.
                if row.is_done or rank >= beams:
                    continue
                row.ended.append((score / length, tokens_NL[number * beams + beam].tolist()))
            elif len(going) < beams:
                going.append((number * beams + beam, token, score))
        # Where too few go on (a small vocabulary, all ended) the rest repeat without weight.
        filler = (going[0][0], going[0][1]) if going else (number * beams, 0)
        going += [(*filler, float("-inf"))] * (beams - len(going))
        parents += [parent for parent, _, _ in going]
        tokens += [token for _, token, _ in going]
        scores.append([score for _, _, score in going])
    device = best_BC.device
    return (
        torch.tensor(parents, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(scores, dtype=best_BC.dtype, device=device),
    )


def _penalised(logits_NV: Tensor, tokens_NL: Tensor, penalty: float) -> Tensor:
    if penalty == 1.0 or tokens_NL.shape[1] == 0:
        return logits_NV
    said_NL = logits_NV.gather(1, tokens_NL)
    said_NL = torch.where(said_NL > 0, said_NL / penalty, said_NL * penalty)
    return logits_NV.scatter(1, tokens_NL, said_NL)


def _is_done(row: _Row, going: float, length: int) -> bool:
    """Says whether no continuation that goes on can become better than the best that ended.

    A token's log-likelihood is at most 0, so the sum can only fall; over ever more tokens its mean could still rise
    to 0, and as usual the comparison is with the mean so far.
    """
    return bool(row.ended) and row.best() >= going / length


def _answer(row: _Row, number: int, score_BK: Tensor, tokens_NL: Tensor, beams: int) -> list[int]:
    """Returns the best that ended; what goes on counts only where nothing did."""
    if row.broken is not None:
        return row.broken
    if row.ended:
        return max(row.ended)[1]
    best = int(score_BK[number].argmax())
    return [int(token) for token in tokens_NL[number * beams + best].tolist()]
