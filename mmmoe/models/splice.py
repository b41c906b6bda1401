"""Puts the tokens of images, videos and sounds in the place of their placeholders, computed as one gather."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmmoe.config.ids import IGNORE_ID, MEDIA_IDS, MEDIA_MARKS

Items = Tensor | list[Tensor]
"""Tokens of the items of one kind: (I, P, D), or one (P, D) an item when their numbers differ."""


@dataclass(frozen=True)
class Splice:
    """A batch after splicing; positions of padding are zero vectors."""

    embeddings_BTD: Tensor
    mask_BT: Tensor
    """True at real positions."""
    position_BT: Tensor
    """0, 1, ... over a row's real positions, 0 at padding."""
    labels_BT: Tensor | None
    """IGNORE_ID at padding and on items; an item's first position has the label of its placeholder."""
    kind_BT: Tensor
    """int64: 0 at text and padding, else the place of the item's kind among the given ones, counted from 1."""
    origin_BT: Tensor
    """int64: place in its row of the id that a position comes from, -1 at padding."""
    is_first_BT: Tensor
    """True at the position of a text's id and at the first one of an item."""

    def prompt(self) -> Tensor:
        """Returns the real positions (B, T) before a row's first target; all of them in a row without targets."""
        if self.labels_BT is None:
            return self.mask_BT
        is_target_BT = self.labels_BT != IGNORE_ID
        before_BT = self.mask_BT & (is_target_BT.cumsum(1) == 0)
        return torch.where(before_BT.any(1, keepdim=True), before_BT, self.mask_BT)


def splice(
    text_BTD: Tensor,
    input_ids_BT: Tensor,
    mask_BT: Tensor,
    items: Mapping[str, Items],
    labels_BT: Tensor | None = None,
    *,
    max_positions: int | None = None,
    left: bool = False,
) -> Splice:
    """Returns the batch with each placeholder replaced by its item's tokens.

    Items of a kind are taken in reading order over the batch; a row without a placeholder takes none (LLaVA-1.5's code
    takes one and throws it away). Padding inside the mask's rows is dropped first, and put back at one side.

    Args:
        text_BTD: embeddings of the ids; what stands at a placeholder is not read.
        input_ids_BT: ids, those of MEDIA_IDS for items.
        mask_BT: True at real positions.
        items: tokens by kind.
        labels_BT: targets.
        max_positions: longer rows are cut on the right.
        left: put padding on the left, as generation wants it.

    Raises:
        ValueError: if the batch has not as many placeholders of a kind as items.
    """
    batch, length, width = text_BTD.shape
    flat = {kind: _flatten(of_kind, text_BTD) for kind, of_kind in items.items()}
    _check_numbers(input_ids_BT, mask_BT, {kind: len(sizes_I) for kind, (_, sizes_I) in flat.items()})
    extent_BT, first_BT = _extents(input_ids_BT, mask_BT, flat)
    # Rows that positions are gathered from: text, the kinds one after the other, one of zeros for padding.
    parts = [batch * length, *(len(tokens_ND) for tokens_ND, _ in flat.values()), 1]
    plan = _plan(extent_BT, max_positions, left)
    source_BT = plan.of_ids(first_BT, sum(parts) - 1) + plan.within_BT
    tokens = [tokens_ND for tokens_ND, _ in flat.values()]
    pool_ND = torch.cat([text_BTD.reshape(batch * length, width), *tokens, text_BTD.new_zeros(1, width)])
    embeddings_BTD = pool_ND.index_select(0, source_BT.reshape(-1)).view(*source_BT.shape, width)
    kinds = torch.tensor([*range(len(parts) - 1), 0], device=text_BTD.device)
    kind_N = kinds.repeat_interleave(torch.tensor(parts, device=text_BTD.device), output_size=sum(parts))
    is_first_BT = plan.kept_BT & (plan.within_BT == 0)
    labels = None
    if labels_BT is not None:
        labels = plan.of_ids(labels_BT, IGNORE_ID).masked_fill(~is_first_BT, IGNORE_ID)
    return Splice(
        embeddings_BTD, plan.kept_BT, plan.position_BT, labels, kind_N[source_BT], plan.origin_BT, is_first_BT
    )


def _flatten(items: Items, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all tokens (N, D) of a kind and each item's number of them (I,)."""
    if isinstance(items, Tensor):
        sizes_I = torch.full((items.shape[0],), items.shape[1], device=text_BTD.device)
        return items.reshape(-1, text_BTD.shape[-1]).to(text_BTD.dtype), sizes_I
    sizes_I = torch.tensor([len(item_PD) for item_PD in items], dtype=torch.int64, device=text_BTD.device)
    empty_ND = text_BTD.new_zeros(0, text_BTD.shape[-1])
    return torch.cat([empty_ND, *(item_PD.to(text_BTD.dtype) for item_PD in items)]), sizes_I


def _check_numbers(input_ids_BT: Tensor, mask_BT: Tensor, given: dict[str, int]) -> None:
    ids_N = input_ids_BT[mask_BT]
    counts = torch.stack([(ids_N == number).sum() for number in MEDIA_IDS.values()]).tolist()
    for kind, count in zip(MEDIA_IDS, counts, strict=True):
        if kind not in given and count:
            raise ValueError(
                f"the batch has {count} {kind} placeholders, but the model takes no {kind}; "
                f"leave {MEDIA_MARKS[kind]} out of the dialogues, or declare a tower for it"
            )
        if count != given.get(kind, 0):
            raise ValueError(
                f"the batch has {count} {kind} placeholders and {given[kind]} {kind} items; "
                f"each {MEDIA_MARKS[kind]} of a dialogue needs its own (a sound one for each chunk), in reading order"
            )


def _extents(input_ids_BT: Tensor, mask_BT: Tensor, flat: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Returns how many positions each id takes (0 where it is not real) and at which row of the pool they begin."""
    extent_BT = mask_BT.to(torch.int64)
    num_pool = input_ids_BT.numel()
    first_BT = torch.arange(num_pool, device=input_ids_BT.device).view_as(input_ids_BT)
    for kind, (tokens_ND, sizes_I) in flat.items():
        is_kind_BT = (input_ids_BT == MEDIA_IDS[kind]) & mask_BT
        extent_BT = extent_BT.masked_scatter(is_kind_BT, sizes_I)
        first_BT = first_BT.masked_scatter(is_kind_BT, num_pool + sizes_I.cumsum(0) - sizes_I)
        num_pool += len(tokens_ND)
    return extent_BT, first_BT


@dataclass(frozen=True)
class _Plan:
    """Where each spliced position (B, T') comes from."""

    kept_BT: Tensor
    """True at real positions."""
    position_BT: Tensor
    """Number of a real position in its row, else 0."""
    origin_BT: Tensor
    """Place of its id in the row, -1 at padding."""
    within_BT: Tensor
    """Number of the position among those of its id, else 0."""

    def of_ids(self, values_BT: Tensor, padding: int) -> Tensor:
        """Returns what the ids of a row have at each position that comes from them."""
        return values_BT.gather(1, self.origin_BT.clamp(min=0)).masked_fill(~self.kept_BT, padding)


def _plan(extent_BT: Tensor, max_positions: int | None, left: bool) -> _Plan:
    """Returns where the positions of rows come from whose ids take so many each."""
    (batch, length), device = extent_BT.shape, extent_BT.device
    extent_N, row_B = extent_BT.reshape(-1), extent_BT.sum(1)
    kept_B = row_B if max_positions is None else row_B.clamp(max=max_positions)
    longest = int(kept_B.max()) if batch else 0

    total = int(row_B.sum())
    id_S = torch.arange(batch * length, device=device).repeat_interleave(extent_N, output_size=total)
    within_S = torch.arange(total, device=device) - (extent_N.cumsum(0) - extent_N)[id_S]
    row_S = id_S // max(length, 1)
    number_S = torch.arange(total, device=device) - (row_B.cumsum(0) - row_B)[row_S]
    keep_S = number_S < kept_B[row_S]
    row_S, id_S, within_S, number_S = row_S[keep_S], id_S[keep_S], within_S[keep_S], number_S[keep_S]
    column_S = number_S + (longest - kept_B)[row_S] if left else number_S

    def placed(values_S: Tensor | bool, padding: int, dtype: torch.dtype = torch.int64) -> Tensor:
        placed_BT = torch.full((batch, longest), padding, dtype=dtype, device=device)
        placed_BT[row_S, column_S] = values_S
        return placed_BT

    return _Plan(
        kept_BT=placed(True, 0, torch.bool),
        position_BT=placed(number_S, 0),
        origin_BT=placed(id_S - row_S * length, -1),
        within_BT=placed(within_S, 0),
    )
