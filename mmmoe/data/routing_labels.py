"""Routing labels of MoVA: the experts that lower a sample's loss (arXiv 2404.13046, section 3.2), or that are named."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmmoe.data.routing_prompt import MOST, one_where


def routing_of(losses: Sequence[float], most: int = MOST) -> tuple[int, ...]:
    """Returns the label of a sample: the experts whose loss is below the base's, the best ones if there are many.

    Args:
        losses: of the base, then of each expert; not finite where a sample could not be read or shows nothing.
        most: experts at most (paper: 3; which ones it does not say, we take the smallest losses).
    """
    base, *experts = losses
    better = [number for number, loss in enumerate(experts) if loss < base]
    return one_where(set(sorted(better, key=lambda number: (experts[number], number))[:most]), len(experts))


def number_of(routing: Sequence[int]) -> int:
    """Returns a routing as one number, with bit e for expert e: what a column of samples keeps."""
    return sum(1 << expert for expert, bit in enumerate(routing) if bit)


def routing_in(number: float, num_experts: int, most: int = MOST) -> tuple[int, ...]:
    """Returns the routing of a kept number: the first `most` of its experts, none of a sample without a number."""
    bits = 0 if math.isnan(number) else int(number)
    named = [expert for expert in range(num_experts) if bits >> expert & 1]
    return one_where(set(named[:most]), num_experts)
