"""Attention to a few points of several maps in plain torch: each query and head is a bag of weighted rows.

`embedding_bag` reads the four cells around each point where they lie and adds them up, so nothing of the size of points
times channels is ever made; `grid_sample`, the usual way, makes it twice (bench_deformable.py: 0.2 to 0.5 of its time
at the sizes of released models). The values' gradient is the same sum with the roles exchanged, after a stable sort by
cell: no atomics, the same bits every time. Kept for the backward: the inputs. Where a head has few channels, finding
the rows is most of the work, and `grid_sample` is taken after all.

Letters as in reference.py, and: M bags (a query and head each), X points of a bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.kernels.backend import TYPES
from mmmoe.kernels.library import register
from mmmoe.kernels.places import exact_type

FEW_CHANNELS = 20
"""Up to so many channels of a head `grid_sample` is taken: 0.6 of the bags' time at 12 channels, 0.7 to 1.0 at 16, 1.0
to 1.4 at 24, 1.3 to 1.6 at 32 (forward and backward of three small workloads, one thread; not measured on a GPU)."""


def deformable_attention(
    value_BSHC: Tensor, sides: Sequence[tuple[int, int]], location_BQHLP2: Tensor, weight_BQHLP: Tensor
) -> Tensor:
    """Returns (B, Q, H * C): of each head the weighted sum of its values at its points (Deformable DETR's function).

    Between the centres of cells values are bilinear, outside a map they are zero. A half type is read exactly and
    rounded once. Weights need not add up to 1.

    Args:
        value_BSHC: the maps' cells in reading order, one map after the other; any floating type. Differentiable.
        sides: rows and columns of the maps.
        location_BQHLP2: x and y of the points, 0 and 1 at a map's edges; best float32: a half type has not the digits
            for large maps. Differentiable.
        weight_BQHLP: weights of the points. Differentiable.

    Raises:
        ValueError: A type, shape or device that does not fit.
    """
    _check(value_BSHC, sides, location_BQHLP2, weight_BQHLP)
    if value_BSHC.shape[-1] <= FEW_CHANNELS:
        return _sampled(value_BSHC, sides, location_BQHLP2, weight_BQHLP)
    rows, columns = [r for r, _ in sides], [c for _, c in sides]
    y_BQX: Tensor = _attention(value_BSHC, rows, columns, location_BQHLP2, weight_BQHLP)
    return y_BQX


def _check(value: Tensor, sides: Sequence[tuple[int, int]], location: Tensor, weight: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be (batch, cells, heads, channels), got {tuple(value.shape)}")
    batch, cells, heads, _ = value.shape
    if not sides:
        raise ValueError("sides must name at least one map, as (rows, columns)")
    expected = sum(r * c for r, c in sides)
    if cells != expected:
        maps = ", ".join(f"{r} x {c}" for r, c in sides)
        raise ValueError(f"value {tuple(value.shape)} has {cells} cells, the maps {maps} have {expected}")
    points = location.shape[4] if location.dim() == 6 else 0
    if location.dim() != 6 or location.shape[0] != batch or location.shape[2:] != (heads, len(sides), points, 2):
        raise ValueError(
            f"location must be ({batch}, queries, {heads}, {len(sides)}, points, 2) to fit value and maps, got "
            f"{tuple(location.shape)}"
        )
    if weight.shape != location.shape[:-1]:
        raise ValueError(f"weight must be {tuple(location.shape[:-1])}, got {tuple(weight.shape)}")
    for name, tensor in (("value", value), ("location", location), ("weight", weight)):
        if tensor.dtype not in TYPES:
            names = ", ".join(map(str, TYPES))
            raise ValueError(f"{name} {tuple(tensor.shape)} is {tensor.dtype}; give one of {names}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}; bring them together")


def _sampled(value: Tensor, sides: Sequence[tuple[int, int]], location: Tensor, weight: Tensor) -> Tensor:
    """Returns the same by a `grid_sample` a map."""
    kind, exact = value.dtype, exact_type(value)
    batch, _, heads, channels = value.shape
    queries, points = location.shape[1], location.shape[4]
    if location.numel() == 0 or value.numel() == 0:  # connected to its inputs, like any other result
        nothing = value.sum() + location.sum() + weight.sum()
        return (nothing * 0.0).to(kind).expand(batch, queries, heads * channels)
    place_LNQP2 = (location.to(exact) * 2 - 1).permute(3, 0, 2, 1, 4, 5).reshape(len(sides), -1, queries, points, 2)
    weight_LN1QP = weight.to(exact).permute(3, 0, 2, 1, 4).reshape(len(sides), -1, 1, queries, points)
    value_NCS = value.to(exact).permute(0, 2, 3, 1).reshape(batch * heads, channels, -1)
    sum_NCQ = value_NCS.new_zeros(batch * heads, channels, queries)
    maps = torch.split(value_NCS, [rows * columns for rows, columns in sides], dim=2)
    for map_NCS, side, place_NQP2, weight_N1QP in zip(maps, sides, place_LNQP2, weight_LN1QP, strict=True):
        map_NCHW = map_NCS.reshape(batch * heads, channels, *side)
        read_NCQP = F.grid_sample(map_NCHW, place_NQP2, align_corners=False)
        sum_NCQ = sum_NCQ + (read_NCQP * weight_N1QP).sum(-1)
    return sum_NCQ.view(batch, heads * channels, queries).transpose(1, 2).to(kind)


class _Axis(NamedTuple):
    """Of each point, the two cells around it along one axis."""

    low_MX: Tensor
    """The first one's number, brought onto the map."""
    high_MX: Tensor
    low_share_MX: Tensor
    """What the first one counts: 0 if it is not on the map."""
    high_share_MX: Tensor
    low_slope_MX: Tensor
    """By how much that grows with the place from 0 to 1."""
    high_slope_MX: Tensor

    @classmethod
    def of(cls, place_MX: Tensor, sizes_X: Tensor) -> _Axis:
        # Spread out once: torch is several times slower where a short row is repeated in every operation.
        size_MX = sizes_X.to(place_MX).expand_as(place_MX).contiguous()
        last_MX = (sizes_X - 1).expand_as(place_MX).contiguous()
        at_MX = torch.add(place_MX * size_MX, -0.5)
        floor_MX = at_MX.floor()
        share_MX = at_MX.sub_(floor_MX)
        is_low_MX = ((floor_MX >= 0) & (floor_MX < size_MX)).to(place_MX)
        is_high_MX = ((floor_MX >= -1) & (floor_MX < size_MX - 1)).to(place_MX)
        # Brought onto the map as whole numbers: what is no number becomes some cell, and its share no number.
        low_MX = floor_MX.to(last_MX.dtype)
        high_MX = torch.minimum((low_MX + 1).clamp_(min=0), last_MX)
        low_MX = torch.minimum(low_MX.clamp_(min=0), last_MX)
        return cls(
            low_MX,
            high_MX,
            (1 - share_MX) * is_low_MX,
            share_MX * is_high_MX,
            is_low_MX.mul_(size_MX).neg_(),
            is_high_MX.mul_(size_MX),
        )


class _Bags(NamedTuple):
    """Of each bag, the cells that it reads: four of each point, those of one corner together."""

    index_M4X: Tensor
    """Rows of the values, taken as (B * S * H, C)."""
    x: _Axis
    y: _Axis
    weight_MX: Tensor

    @classmethod
    def of(cls, value: Tensor, rows: list[int], columns: list[int], location: Tensor, weight: Tensor) -> _Bags:
        batch, cells, heads, _ = value.shape
        queries, levels, points = location.shape[1], *location.shape[3:5]
        shape, device = (batch * queries * heads, levels * points), value.device
        kind = torch.int32 if batch * cells * heads < 2**31 else torch.int64

        def spread(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=kind, device=device).repeat_interleave(points, output_size=shape[1])

        place_2MX = location.to(exact_type(value)).reshape(-1, 2).t().contiguous().view(2, *shape)
        x, y = _Axis.of(place_2MX[0], spread(columns)), _Axis.of(place_2MX[1], spread(rows))
        first = [sum(r * c for r, c in zip(rows[:level], columns[:level], strict=True)) for level in range(levels)]
        batch_B1, head_H = torch.arange(batch, dtype=kind, device=device)[:, None], torch.arange(heads, device=device)
        start_BH = (batch_B1 * (cells * heads) + head_H).to(kind)
        start_MX = start_BH[:, None].expand(batch, queries, heads).reshape(-1, 1) + spread(first) * heads
        along_MX = (spread(columns) * heads).expand(shape).contiguous()
        lines = [torch.addcmul(start_MX, row_MX, along_MX) for row_MX in (y.low_MX, y.high_MX)]
        index_M4X = start_MX.new_empty(shape[0], 4, shape[1])
        for corner, (line_MX, column_MX) in enumerate((line, c) for line in lines for c in (x.low_MX, x.high_MX)):
            torch.add(line_MX, column_MX, alpha=heads, out=index_M4X[:, corner])
        return cls(index_M4X, x, y, weight.to(exact_type(value)).reshape(shape))

    def shares(self) -> Tensor:
        """Returns what each row counts (M, 4, X), its point's weight included."""
        share_M4X = self.weight_MX.new_empty(self.index_M4X.shape)
        lines = [share_MX * self.weight_MX for share_MX in (self.y.low_share_MX, self.y.high_share_MX)]
        columns = (self.x.low_share_MX, self.x.high_share_MX)
        for corner, (line_MX, column_MX) in enumerate((line, c) for line in lines for c in columns):
            torch.mul(line_MX, column_MX, out=share_M4X[:, corner])
        return share_M4X

    def by_place(self, dot_M4X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns gradients of x, y and weight (M, X), given those of the shares."""
        x, y = self.x, self.y
        lines = dot_M4X[:, :2], dot_M4X[:, 2:]
        low_MX, high_MX = (torch.addcmul(d[:, 0] * x.low_share_MX, d[:, 1], x.high_share_MX) for d in lines)
        weight_MX = torch.addcmul(low_MX * y.low_share_MX, high_MX, y.high_share_MX)
        y_MX = torch.addcmul(low_MX * y.low_slope_MX, high_MX, y.high_slope_MX)
        low_MX, high_MX = (torch.addcmul(d[:, 0] * x.low_slope_MX, d[:, 1], x.high_slope_MX) for d in lines)
        x_MX = torch.addcmul(low_MX * y.low_share_MX, high_MX, y.high_share_MX)
        return x_MX.mul_(self.weight_MX), y_MX.mul_(self.weight_MX), weight_MX


def _add_up(table: Tensor, index: Tensor, start: Tensor, share: Tensor) -> Tensor:
    """Returns for each bag, which begins at `start`, the sum of its rows of the table times their shares."""
    sums: Tensor = torch.embedding_bag(table, index, start, False, 0, False, share)[0]  # 0: sum
    return sums


def _run(value: Tensor, rows: list[int], columns: list[int], location: Tensor, weight: Tensor) -> Tensor:
    y_BQX = _fake(value, rows, columns, location, weight)
    if location.numel() == 0 or value.numel() == 0:
        return y_BQX.zero_()
    bags = _Bags.of(value, rows, columns, location, weight)
    start_M = torch.arange(len(bags.index_M4X), device=value.device) * bags.index_M4X[0].numel()
    table = value.to(exact_type(value)).reshape(-1, value.shape[-1])
    found_MC = _add_up(table, bags.index_M4X.flatten(), start_M.to(bags.index_M4X.dtype), bags.shares().flatten())
    return found_MC.view_as(y_BQX).to(value.dtype)


def _fake(value: Tensor, rows: list[int], columns: list[int], location: Tensor, weight: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], location.shape[1], value.shape[2] * value.shape[3])


def _run_backward(
    dy: Tensor, value: Tensor, rows: list[int], columns: list[int], location: Tensor, weight: Tensor,
    wants_value: bool, wants_places: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if location.numel() == 0 or value.numel() == 0:
        empty = _fake_backward(dy, value, rows, columns, location, weight, wants_value, wants_places)
        return empty[0].zero_(), empty[1].zero_(), empty[2].zero_()
    dvalue, dlocation, dweight = value.new_empty(0), location.new_empty(0), weight.new_empty(0)
    exact, channels = exact_type(value), value.shape[-1]
    bags = _Bags.of(value, rows, columns, location, weight)
    index_N, dy_MC = bags.index_M4X.flatten(), dy.to(exact).reshape(-1, channels)
    size = bags.index_M4X[0].numel()
    if wants_value:
        order_N = index_N.sort(stable=True).indices
        reads = torch.zeros(value.numel() // channels, dtype=index_N.dtype, device=dy.device)
        reads.index_add_(0, index_N, torch.ones_like(index_N))  # bincount would make a GPU's host wait
        start = reads.cumsum(0) - reads
        shares_N = bags.shares().flatten()[order_N]
        dvalue = _add_up(dy_MC, order_N // size, start, shares_N).view(value.shape).to(value.dtype)
    if wants_places:
        bag_N = torch.arange(len(dy_MC), dtype=index_N.dtype, device=dy.device).repeat_interleave(size)
        table = value.to(exact).reshape(-1, channels)
        start_M = torch.arange(len(dy_MC), dtype=index_N.dtype, device=dy.device) * size
        dot_N = torch.ops.aten._embedding_bag_per_sample_weights_backward(dy_MC, table, index_N, start_M, bag_N, 0)
        dx_MX, dy_MX, dweight_MX = bags.by_place(dot_N.view_as(bags.index_M4X))
        dlocation = torch.stack([dx_MX, dy_MX], dim=-1).view(location.shape).to(location.dtype)
        dweight = dweight_MX.view(weight.shape).to(weight.dtype)
    return dvalue, dlocation, dweight


def _fake_backward(
    dy: Tensor, value: Tensor, rows: list[int], columns: list[int], location: Tensor, weight: Tensor,
    wants_value: bool, wants_places: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def like(tensor: Tensor, wanted: bool) -> Tensor:
        return torch.empty(tensor.shape if wanted else 0, dtype=tensor.dtype, device=tensor.device)

    return like(value, wants_value), like(location, wants_places), like(weight, wants_places)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.rows, ctx.columns, location, weight = inputs
    ctx.save_for_backward(value, location, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    value, location, weight = ctx.saved_tensors
    of_value, _, _, of_location, of_weight = ctx.needs_input_grad
    wanted = of_value, of_location or of_weight
    dvalue, dlocation, dweight = _attention_backward(dy, value, ctx.rows, ctx.columns, location, weight, *wanted)
    return (
        dvalue if of_value else None, None, None, dlocation if of_location else None, dweight if of_weight else None,
    )  # fmt: skip


_attention_backward = register(
    "deformable_attention_backward(Tensor dy, Tensor value, int[] rows, int[] columns, Tensor location, Tensor weight, "
    "bool wants_value, bool wants_places) -> (Tensor, Tensor, Tensor)",
    run=_run_backward,
    fake=_fake_backward,
)
_attention = register(
    "deformable_attention(Tensor value, int[] rows, int[] columns, Tensor location, Tensor weight) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    keep=_keep,
)
