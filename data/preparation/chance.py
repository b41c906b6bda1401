"""Chance that is a function of what it is about: splits and draws that no order of a list can change."""

from __future__ import annotations

import hashlib
import random


def digest(*key: object) -> int:
    """Returns a 256-bit number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, key)).encode()).digest(), "big")


def bucket(kind: str, name: object, count: int) -> int:
    """Returns which of `count` equal buckets a thing of this kind falls into."""
    return digest(kind, name) % count


def generator(*key: object) -> random.Random:
    """Returns a random generator that is a function of the key."""
    return random.Random(digest("seed", *key))
