"""Checks of what says where rows go, shared by the ops that follow a routing."""

from __future__ import annotations

import torch
from torch import Tensor

from mmmoe.kernels.backend import TYPES
from mmmoe.kernels.order import MOST_CHOSEN


def check_rows(name: str, rows: Tensor, *others: tuple[str, Tensor]) -> None:
    """Refuses rows that are no matrix or of a type that no op takes, and companions on another device.

    Raises:
        ValueError: Which argument, its shape, and what would do.
    """
    if rows.dim() != 2:
        raise ValueError(f"{name} must have two dimensions (rows, width), got shape {tuple(rows.shape)}")
    if rows.dtype not in TYPES:
        names = ", ".join(map(str, TYPES))
        raise ValueError(f"{name} {tuple(rows.shape)} are {rows.dtype} on {rows.device}; give one of {names}")
    for other, tensor in others:
        if tensor.device != rows.device:
            raise ValueError(
                f"{other} {tuple(tensor.shape)} is on {tensor.device}, {name} on {rows.device}; bring them together"
            )


def check_places(order_S: Tensor, inverse_S: Tensor, num_tokens: int) -> int:
    """Returns K, the slots of a token, for an order and its inverse of one length.

    Raises:
        ValueError: They are not int64, differ in length, or do not give each token 1 to 8 slots.
    """
    for name, tensor in (("order", order_S), ("inverse", inverse_S)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise ValueError(f"{name} must be one row of int64, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    if order_S.shape != inverse_S.shape:
        raise ValueError(f"order {tuple(order_S.shape)} and inverse {tuple(inverse_S.shape)} must be of one length")
    num_slots = order_S.numel()
    if num_tokens == 0 and num_slots == 0:
        return 1
    if num_tokens == 0 or num_slots % num_tokens or not 1 <= num_slots // num_tokens <= MOST_CHOSEN:
        raise ValueError(
            f"order {tuple(order_S.shape)} does not give each of {num_tokens} tokens the same 1 to {MOST_CHOSEN} slots"
        )
    return num_slots // num_tokens


def check_range(name: str, index: Tensor, below: int, *, least: int = -1) -> None:
    """Refuses numbers outside least .. below - 1. Only on a CPU: on a GPU one would have to wait.

    Raises:
        ValueError: The name, the number that is out of range, and the range.
    """
    if index.device.type != "cpu" or index.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(index))
    if low < least or high >= below:
        wrong = low if low < least else high
        raise ValueError(f"{name} {tuple(index.shape)} holds {wrong}; {least} to {below - 1} work")


def check_inverse(order_S: Tensor, inverse_S: Tensor) -> None:
    """Refuses an order and an inverse that are not each other's. Only on a CPU: on a GPU one would have to wait.

    Raises:
        ValueError: A number out of range, or the first slot or place where they disagree.
    """
    check_range("order", order_S, order_S.numel())
    check_range("inverse", inverse_S, order_S.numel())
    if order_S.device.type != "cpu" or order_S.numel() == 0:
        return
    number_S = torch.arange(order_S.numel())
    for name, own, other in (("order", order_S, inverse_S), ("inverse", inverse_S, order_S)):
        is_wrong = (own >= 0) & (other[own.clamp(min=0)] != number_S)
        if bool(is_wrong.any()):
            at = int(is_wrong.int().argmax())
            raise ValueError(f"{name} {tuple(own.shape)} says {int(own[at])} at {at}, the other does not say so back")


def exact_type(rows: Tensor) -> torch.dtype:
    """Returns the type in which an op adds up rows of a type."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32
