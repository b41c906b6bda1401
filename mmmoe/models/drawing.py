"""Where the images of a batch stand once they are spliced in, which of them are to be drawn, and from what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmmoe.models.image_decoder.context import PreviousMaps, places_in_context
from mmmoe.models.splice import Splice


@dataclass(frozen=True)
class Placed:
    """Images that begin in a spliced batch, in reading order."""

    row_I: Tensor
    column_I: Tensor
    """Column of the position that begins the image."""
    number_I: Tensor
    """Number among the batch's images; where rows were cut some numbers are missing."""

    def chosen(self, is_chosen_I: Tensor) -> Placed:
        """Returns some of them."""
        return Placed(self.row_I[is_chosen_I], self.column_I[is_chosen_I], self.number_I[is_chosen_I])

    def before(self) -> Tensor:
        """Returns the number of the image before each in its row (I,), -1 where there is none."""
        before_I = torch.full_like(self.number_I, -1)
        is_same_I = self.row_I[1:] == self.row_I[:-1]
        before_I[1:] = torch.where(is_same_I, self.number_I[:-1], before_I[1:])
        return before_I

    def last(self, rows: int) -> Tensor:
        """Returns the number of each row's last image (B,), -1 where it has none."""
        last_B = torch.full((rows,), -1, dtype=torch.int64, device=self.row_I.device)
        return last_B.scatter_reduce(0, self.row_I, self.number_I, "amax")

    def by_row(self, values_IX: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Returns what the images have, by number, row by row (B, N, ...), and their columns (B, N), -1 for none."""
        count_B = torch.bincount(self.row_I, minlength=rows)
        most = int(count_B.max()) if rows else 0
        slot_I = torch.arange(len(self.row_I), device=self.row_I.device) - (count_B.cumsum(0) - count_B)[self.row_I]
        values_BNX = values_IX.new_zeros(rows, most, *values_IX.shape[1:])
        values_BNX = values_BNX.index_put((self.row_I, slot_I), values_IX[self.number_I])
        column_BN = torch.full((rows, most), -1, dtype=torch.int64, device=self.row_I.device)
        column_BN[self.row_I, slot_I] = self.column_I
        return values_BNX, column_BN


def number_images(input_ids_BT: Tensor, image_id: int) -> Tensor:
    """Returns (B, T) at each placeholder the number of its image in reading order; elsewhere that of the one before."""
    return ((input_ids_BT == image_id).reshape(-1).cumsum(0) - 1).view_as(input_ids_BT)


def placed(spliced: Splice, number_BT: Tensor, kind: int) -> Placed:
    """Returns the images of a batch.

    Args:
        spliced: the batch.
        number_BT: of `number_images`, for the ids before they were spliced.
        kind: number of images among the kinds (`Splice.kind_BT`).
    """
    row_I, column_I = (spliced.is_first_BT & (spliced.kind_BT == kind)).nonzero(as_tuple=True)
    return Placed(row_I, column_I, number_BT[row_I, spliced.origin_BT[row_I, column_I]])


def first_columns(spliced: Splice, row_I: Tensor) -> Tensor:
    """Returns the column (I,) in which each of some rows begins: padding may stand before it."""
    return spliced.mask_BT.long().argmax(dim=1)[row_I]


def letter_places(letters_IL: Tensor, spliced: Splice, row_I: Tensor, last_I: Tensor) -> Tensor:
    """Returns how far before an image (in positions) each of its letters stands (I, L), -1 behind the last.

    Args:
        letters_IL: places of the letters among the real ids of the image's row, -1 behind the last.
        spliced: the batch.
        row_I: the image's row.
        last_I: column of the position that begins the image.
    """
    origin_IT, is_first_IT = spliced.origin_BT[row_I], spliced.is_first_BT[row_I]
    # Origins count the padding in front of a prompt; letters do not.
    origin_IT = origin_IT - origin_IT.gather(1, first_columns(spliced, row_I)[:, None])
    is_it_ILT = (letters_IL[:, :, None] == origin_IT[:, None, :]) & is_first_IT[:, None, :]
    column_IL = is_it_ILT.long().argmax(dim=2)
    is_there_IL = is_it_ILT.any(dim=2) & (letters_IL >= 0)
    return places_in_context(column_IL.masked_fill(~is_there_IL, -1), last_I)


def maps_before(maps: list[Tensor], before_I: Tensor) -> PreviousMaps:
    """Returns the maps of the images with some numbers, none for -1."""
    has_I = before_I >= 0
    return PreviousMaps([map_ISC[before_I.clamp(min=0)] for map_ISC in maps], has_I)
