"""Attention to a few points of the maps of several images, which looks away where no image is to be seen.

Letters here: N images of a row of the batch, S cells of an image's maps one after the other, L maps, P points of a head
on a map, W width of what is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.kernels.deformable.op import deformable_attention

Grid = tuple[int, int]
"""Rows and columns."""


class MultiImageAttention(nn.Module):
    """MMFS of MM-Interleaved (arXiv 2401.10208, section 3.2), under the names of its released weights.

        q_n = M h + r(n)                                r: a row for the image seen last, the one before it, ...
        offsets = O q_n, as many cells on each map as its side is of the base's
        weights = softmax over (images x maps x points, and one slot of logit 0 that reads the ignored vector)

    The authors run M, O and the weights' linear once an image; here M runs once a query, and r goes through the other
    two by itself. Their maps x images ignore slots of logit -log(maps x images) are one slot of logit 0, so how many
    images the batch is padded to does not matter. Each map's last output of `attention_weights` is theirs and unused.
    """

    def __init__(
        self,
        query_width: int,
        channels: int,
        value_width: int,
        sides: Sequence[Grid],
        base: Grid,
        *,
        heads: int,
        points: int,
        offset_range: float,
        max_images: int,
    ) -> None:
        """Draws fresh weights.

        Args:
            query_width: of the queries and of what comes out.
            channels: of the maps.
            value_width: W.
            sides: of the maps, by which offsets are measured.
            base: of the map on which an offset of 1 is one cell.
            heads: H.
            points: P.
            offset_range: offsets start uniform within it.
            max_images: most images of a row.

        Raises:
            ValueError: The heads do not divide the width.
        """
        super().__init__()
        if value_width % heads:
            raise ValueError(f"a synchroniser reads {value_width} channels with {heads} heads; they must divide it")
        self.heads, self.points, self.levels, self.max_images = heads, points, len(sides), max_images
        self.offset_range = offset_range
        self.cells = [(columns / base[1], rows / base[0]) for rows, columns in sides]
        """Of each map, the cells that an offset of 1 goes to the right and down."""
        self.sampling_offsets = nn.Linear(query_width, heads * points * 2)
        self.dynamic_offset_mask = nn.Linear(query_width, query_width)
        self.attention_weights = nn.Linear(query_width, heads * self.levels * (points + 1))
        self.value_proj = nn.Linear(channels, value_width)
        self.output_proj = nn.Linear(value_width, query_width)
        self.query_relpos = nn.Embedding(max_images + 1, query_width)
        self.register_buffer("ignore_token", torch.zeros(1, 1, 1, value_width))
        self.ignore_token: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights as the authors do: points lie anywhere near, and do not depend on the query yet."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.uniform_(self.sampling_offsets.bias, -self.offset_range, self.offset_range)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.dynamic_offset_mask, self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        nn.init.trunc_normal_(self.query_relpos.weight, std=0.02)

    def forward(
        self,
        query_BTD: Tensor,
        maps_BNSC: Tensor,
        sides: Sequence[Grid],
        visible_BTN: Tensor,
        reference_T2: Tensor | None = None,
    ) -> Tensor:
        """Returns what the queries find (B, T, D).

        Args:
            query_BTD: the queries.
            maps_BNSC: of each image its maps, flattened one after the other.
            sides: rows and columns of the maps.
            visible_BTN: which images a query sees; (B, 1, N) if all see the same.
            reference_T2: x and y in 0..1 that a query's offsets start from; None: the middle.
        """
        return self.read(query_BTD, self.values(maps_BNSC), sides, visible_BTN, reference_T2)

    def values(self, maps_BNSC: Tensor) -> Tensor:
        """Returns what can be read of the maps (B, N * S, H, W / H); the same for all queries."""
        value_BSHW: Tensor = rearrange(self.value_proj(maps_BNSC), "b n s (h w) -> b (n s) h w", h=self.heads)
        return value_BSHW

    def read(
        self,
        query_BTD: Tensor,
        value_BSHW: Tensor,
        sides: Sequence[Grid],
        visible_BTN: Tensor,
        reference_T2: Tensor | None = None,
    ) -> Tensor:
        """Returns what the queries find in values.

        Raises:
            ValueError: There are more images than the table has rows for, or not as many maps as declared.
        """
        images = visible_BTN.shape[-1]
        if images > self.max_images:
            raise ValueError(
                f"a dialogue has {images} images, the synchroniser's table is for {self.max_images}; raise max_images "
                "or shorten the dialogue"
            )
        if len(sides) != self.levels:
            raise ValueError(f"a synchroniser for {self.levels} maps an image was given {len(sides)}")
        recency_BTN = _recency(visible_BTN)
        query_BTD = self.dynamic_offset_mask(query_BTD)
        location_BTHNLP2 = self._locations(query_BTD, recency_BTN, sides, reference_T2)
        weight_BTHNLP, ignored_BTH = self._weights(query_BTD, recency_BTN)
        found_BTW = deformable_attention(
            value_BSHW, [*sides] * images, location_BTHNLP2.flatten(3, 4), weight_BTHNLP.flatten(3, 4)
        )
        ignored_HW = self.ignore_token.view(self.heads, -1).to(found_BTW.dtype)
        found_BTW = found_BTW + (ignored_BTH.to(found_BTW.dtype)[..., None] * ignored_HW).flatten(2)
        out_BTD: Tensor = self.output_proj(found_BTW)
        return out_BTD

    def blind(self) -> Tensor:
        """Returns what a query finds that sees no image (1, 1, D); every weight takes part in it."""
        like = self.value_proj.weight
        maps_BNSC = like.new_zeros(1, 1, self.levels, self.value_proj.in_features)
        visible_BTN = torch.zeros(1, 1, 1, dtype=torch.bool, device=like.device)
        query_BTD = like.new_zeros(1, 1, self.dynamic_offset_mask.in_features)
        # Not through `forward`, as where there are images: ZeRO 3 wants the same modules called on every process.
        return self.read(query_BTD, self.values(maps_BNSC), [(1, 1)] * self.levels, visible_BTN)

    def _locations(
        self, query_BTD: Tensor, recency_BTN: Tensor, sides: Sequence[Grid], reference_T2: Tensor | None
    ) -> Tensor:
        offset_BTNX = self._of_images(self.sampling_offsets, query_BTD, recency_BTN)
        offset_BTHN1P2 = rearrange(offset_BTNX, "b t n (h p c) -> b t h n 1 p c", h=self.heads, c=2)
        steps = [(x / columns, y / rows) for (x, y), (rows, columns) in zip(self.cells, sides, strict=True)]
        share_L12 = torch.tensor(steps, device=query_BTD.device)[:, None]
        if reference_T2 is None:
            return offset_BTHN1P2 * share_L12 + 0.5
        return offset_BTHN1P2 * share_L12 + reference_T2[None, :, None, None, None, None]

    def _weights(self, query_BTD: Tensor, recency_BTN: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights of the points, and of the ignored vector (B, T, H)."""
        logit_BTNX = self._of_images(self.attention_weights, query_BTD, recency_BTN)
        logit_BTNX = logit_BTNX.masked_fill((recency_BTN == 0)[..., None], -math.inf)
        shape = {"h": self.heads, "l": self.levels}
        logit_BTHNLP = rearrange(logit_BTNX, "b t n (h l p) -> b t h n l p", **shape)[..., :-1]
        ignored_BTH1 = logit_BTHNLP.new_zeros(*logit_BTHNLP.shape[:3], 1)
        weight_BTHX = torch.cat([logit_BTHNLP.flatten(3), ignored_BTH1], dim=-1).softmax(-1)
        return weight_BTHX[..., :-1].view_as(logit_BTHNLP), weight_BTHX[..., -1]

    def _of_images(self, linear: nn.Linear, query_BTD: Tensor, recency_BTN: Tensor) -> Tensor:
        """Returns linear(query + r of the image) (B, T, N, X), at least float32, without that sum for every image."""
        rows = torch.arange(recency_BTN.shape[-1] + 1, device=query_BTD.device)
        # Its bias comes with the query's part already; a row of zeros at the end takes it off the images' part.
        part_KX = linear(F.pad(self.query_relpos(rows), (0, 0, 0, 1)))
        image_KX = part_KX[:-1] - part_KX[-1:]
        exact = torch.promote_types(query_BTD.dtype, torch.float32)
        out_BTNX: Tensor = linear(query_BTD).to(exact)[:, :, None] + image_KX.to(exact)[recency_BTN]
        return out_BTNX


def _recency(visible_BTN: Tensor) -> Tensor:
    """Returns 1 for the last image that a query sees, 2 for the one before it, ..., 0 for those it does not see."""
    visible_BTN = visible_BTN.long()
    later_BTN = visible_BTN.sum(-1, keepdim=True) - visible_BTN.cumsum(-1)
    return (later_BTN + 1) * visible_BTN
