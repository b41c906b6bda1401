"""The order samples are read in: a pure function of seed and position, whoever asks and wherever they start.

Over any number of positions each source is drawn as often as its weight says; over one epoch of a source each of its
samples is drawn exactly once. Nothing is stored or replayed: position 10^9 costs as much as position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmmoe.data.spec import MixtureSpec

BLOCK = 1024
"""Positions whose sources are shuffled among themselves."""
ROUNDS = 6
"""Feistel rounds; four already pass for a random permutation, two more are cheap."""

Unsigned = NDArray[np.uint64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """What stands at one position."""

    source: int
    epoch: int
    """Pass over that source."""
    index: int
    """Sample within the source."""


@dataclass(frozen=True)
class Draws:
    """What stands at many positions, one array entry each."""

    source: Integers
    epoch: Integers
    index: Integers

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> Draw:
        return Draw(int(self.source[place]), int(self.epoch[place]), int(self.index[place]))


class Order:
    """The endless sequence of draws from weighted sources."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Fixes the sequence.

        Args:
            sizes: Samples of each source.
            weights: Share of each source, relative to one another.
            seed: Another seed, another order.

        Raises:
            ValueError: A source is empty or a weight is not positive.
        """
        if not sizes or len(sizes) != len(weights):
            raise ValueError(f"a mixture needs one weight a source, got {len(weights)} weights for {len(sizes)}")
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if size < 1 or not 0 < weight < float("inf"):
                raise ValueError(f"source {number} has {size} samples and weight {weight}; both must be positive")
        self.sizes = list(sizes)
        self.seed = seed
        # The decimal a user wrote, not its binary neighbour: 0.1 is a tenth.
        shares = [Fraction(str(weight)) for weight in weights]
        self._parts = [share / sum(shares[number:]) for number, share in enumerate(shares)]
        self._sizes = np.array(sizes, dtype=np.int64)
        half_bits = [max(1, ((size - 1).bit_length() + 1) // 2) for size in sizes]
        self._half_bits = np.array(half_bits, dtype=np.uint64)
        self._block = lru_cache(maxsize=64)(self._draw_block)

    def quotas(self, positions: int) -> list[int]:
        """Returns how often each source has been drawn before a block's first position.

        Source 0 takes floor(n w_0 / sum w), the next the same share of what is left, and so on: closed, exact in sum,
        and never falling in n, which independent rounding per source would not be.
        """
        left, counts = positions, []
        for part in self._parts:
            count = left * part.numerator // part.denominator
            counts.append(count)
            left -= count
        return counts

    def at(self, position: int) -> Draw:
        """Returns the draw at one position."""
        return self.draws([position])[0]

    def draws(self, positions: Sequence[int] | Integers) -> Draws:
        """Returns the draws at many positions."""
        position = np.asarray(positions, dtype=np.int64)
        if position.size and int(position.min()) < 0:
            raise ValueError(f"position {int(position.min())} is before the start of the order")
        source, ordinal = np.empty_like(position), np.empty_like(position)
        block = position // BLOCK
        for number in np.unique(block):
            here = block == number
            sources, ordinals = self._block(int(number))
            source[here] = sources[position[here] % BLOCK]
            ordinal[here] = ordinals[position[here] % BLOCK]
        size = self._sizes[source]
        epoch = ordinal // size
        return Draws(source, epoch, self._permute(ordinal % size, source, epoch))

    def _draw_block(self, block: int) -> tuple[Integers, Integers]:
        """Returns, for each position of a block, its source and how often that source was drawn before."""
        before = self.quotas(block * BLOCK)
        after = self.quotas((block + 1) * BLOCK)
        counts = np.array(after) - np.array(before)
        source = np.repeat(np.arange(len(before), dtype=np.int64), counts)
        ticket = _mix(np.arange(BLOCK, dtype=np.uint64) ^ _key(self.seed, 1, block))
        source = source[np.argsort(ticket, kind="stable")]
        ordinal = np.empty(BLOCK, dtype=np.int64)
        for number, first in enumerate(before):
            here = source == number
            ordinal[here] = first + np.arange(int(here.sum()))
        return source, ordinal

    def _permute(self, place: Integers, source: Integers, epoch: Integers) -> Integers:
        """Maps places of an epoch to samples, one to one, by a Feistel network and cycle walking."""
        key = _mix(_mix(source.astype(np.uint64) ^ _key(self.seed, 2, 0)) ^ epoch.astype(np.uint64))
        half = self._half_bits[source]
        size = self._sizes[source].astype(np.uint64)
        value = _feistel(place.astype(np.uint64), half, key)
        # The network permutes a power of four, at most 4 times the size; whoever lands outside walks on.
        while (outside := value >= size).any():
            value[outside] = _feistel(value[outside], half[outside], key[outside])
        return value.astype(np.int64)


def order_of(spec: MixtureSpec, sizes: Sequence[int]) -> Order:
    """Returns the order of a declared mixture whose sources have these sizes."""
    return Order(sizes, [source.weight for source in spec.sources], spec.seed)


def _feistel(value: Unsigned, half: Unsigned, key: Unsigned) -> Unsigned:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(ROUNDS):
        turned = _mix(right ^ _mix(key + np.uint64(number)))
        left, right = right, left ^ (turned & mask)
    return (left << half) | right


def _mix(value: Unsigned) -> Unsigned:
    """SplitMix64's finaliser: every input bit moves every output bit. Fixed arithmetic, alike in every numpy."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(*parts: int) -> np.uint64:
    """Hashes a few integers to one key."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _mix(key ^ np.array([part % 2**64], dtype=np.uint64))
    return np.uint64(key[0])
