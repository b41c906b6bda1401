"""Puts image tokens in the place of their placeholders (LLaVA-1.5's splice, computed as one gather)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID


@dataclass(frozen=True)
class Splice:
    """A batch after splicing; positions of padding are zero vectors."""

    embeddings_BTD: Tensor
    mask_BT: Tensor
    """True at real positions."""
    position_BT: Tensor
    """0, 1, ... over a row's real positions, 0 at padding."""
    labels_BT: Tensor | None
    """IGNORE_ID at image positions and padding."""
    is_image_BT: Tensor
    """True where a token of an image stands."""

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
    images: Tensor | list[Tensor],
    labels_BT: Tensor | None = None,
    *,
    max_positions: int | None = None,
    left: bool = False,
) -> Splice:
    """Returns the batch with each placeholder replaced by its image's tokens.

    Images are taken in reading order over the batch; a row without a placeholder takes none (LLaVA-1.5's code takes
    one and throws it away). Padding inside the mask's rows is dropped first, and put back at one side.

    Args:
        text_BTD: embeddings of the ids; what stands at a placeholder is not read.
        input_ids_BT: ids, IMAGE_ID for an image.
        mask_BT: True at real positions.
        images: tokens of the images (I, M, D), or one (M, D) an image when their number differs.
        labels_BT: targets.
        max_positions: longer rows are cut on the right.
        left: put padding on the left, as generation wants it.

    Raises:
        ValueError: if the batch has not as many placeholders as images.
    """
    batch, length, width = text_BTD.shape
    image_ND, sizes_I = _flatten(images, text_BTD)
    is_image_BT = (input_ids_BT == IMAGE_ID) & mask_BT
    num_placeholders = int(is_image_BT.sum())
    if num_placeholders != sizes_I.numel():
        raise ValueError(
            f"the batch has {num_placeholders} image placeholders and {sizes_I.numel()} images; "
            "each <image> of a dialogue needs one image, in reading order"
        )
    source_BT, position_BT, kept_BT = _plan(is_image_BT, mask_BT, sizes_I, max_positions, left)
    zero_1D = text_BTD.new_zeros(1, width)
    pool_ND = torch.cat([text_BTD.reshape(batch * length, width), image_ND, zero_1D])
    embeddings_BTD = pool_ND.index_select(0, source_BT.reshape(-1)).view(*source_BT.shape, width)
    labels = None
    if labels_BT is not None:
        ignored = labels_BT.new_full((image_ND.shape[0] + 1,), IGNORE_ID)
        labels = torch.cat([labels_BT.reshape(-1), ignored])[source_BT]
    num_text = batch * length
    is_image_BT = (source_BT >= num_text) & (source_BT < num_text + image_ND.shape[0])
    return Splice(embeddings_BTD, kept_BT, position_BT, labels, is_image_BT)


def _flatten(images: Tensor | list[Tensor], text_BTD: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(images, Tensor):
        sizes_I = torch.full((images.shape[0],), images.shape[1], device=text_BTD.device)
        return images.reshape(-1, text_BTD.shape[-1]).to(text_BTD.dtype), sizes_I
    sizes_I = torch.tensor([len(image_MD) for image_MD in images], dtype=torch.int64, device=text_BTD.device)
    empty_ND = text_BTD.new_zeros(0, text_BTD.shape[-1])
    return torch.cat([empty_ND, *(image_MD.to(text_BTD.dtype) for image_MD in images)]), sizes_I


def _plan(
    is_image_BT: Tensor, mask_BT: Tensor, sizes_I: Tensor, max_positions: int | None, left: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns for each spliced position its row in the pool [text, images, zero], its number and whether it is real."""
    batch, length = mask_BT.shape
    device = mask_BT.device
    num_text, num_image = batch * length, int(sizes_I.sum())
    is_image_N, extent_N = is_image_BT.reshape(-1), mask_BT.reshape(-1).to(torch.int64)
    extent_N = extent_N.masked_scatter(is_image_N, sizes_I)
    first_N = torch.arange(num_text, device=device)
    first_N = first_N.masked_scatter(is_image_N, num_text + sizes_I.cumsum(0) - sizes_I)

    extent_BT = extent_N.view(batch, length)
    row_B = extent_BT.sum(1)
    kept_B = row_B if max_positions is None else row_B.clamp(max=max_positions)
    longest = int(kept_B.max()) if batch else 0

    total = int(row_B.sum())
    before_N = extent_N.cumsum(0) - extent_N
    within = torch.arange(total, device=device) - before_N.repeat_interleave(extent_N, output_size=total)
    source = first_N.repeat_interleave(extent_N, output_size=total) + within
    row = torch.arange(batch, device=device).repeat_interleave(row_B, output_size=total)
    number = torch.arange(total, device=device) - (row_B.cumsum(0) - row_B)[row]
    keep = number < kept_B[row]
    row, source, number = row[keep], source[keep], number[keep]
    column = number + (longest - kept_B)[row] if left else number

    source_BT = torch.full((batch, longest), num_text + num_image, dtype=torch.int64, device=device)
    position_BT = torch.zeros(batch, longest, dtype=torch.int64, device=device)
    kept_BT = torch.zeros(batch, longest, dtype=torch.bool, device=device)
    source_BT[row, column], position_BT[row, column], kept_BT[row, column] = source, number, True
    return source_BT, position_BT, kept_BT
