"""Who may be trained on and who is held out: fixed by a hash of the thing itself, never by its place in a list."""

from __future__ import annotations

from typing import Literal

from preparation.chance import bucket

Split = Literal["train", "validation", "test"]

TRAIN_ARTISTS = ("twemoji", "noto", "noto-v1", "openmoji", "fxemoji")
VALIDATION_ARTIST = "emojione"
TEST_ARTIST = "fluent-emoji-flat"
TEST_FONT = "STIX"
"""A whole family: Times-like, drawn by other hands than every family in training."""


def concept_split(name: str) -> Split:
    """Test 1 concept in 8, validation 1 in 16."""
    place = bucket("concept", name, 16)
    return "test" if place < 2 else "validation" if place == 2 else "train"


def word_split(word: str) -> Split:
    """Test 1 word in 6, validation 1 in 12."""
    place = bucket("word", word.lower(), 12)
    return "test" if place < 2 else "validation" if place == 2 else "train"


def table_split(table: str) -> Split:
    """Test 1 table in 4; of the rest 1 in 5 for validation."""
    if bucket("table", table, 4) == 0:
        return "test"
    return "validation" if bucket("table-validation", table, 5) == 0 else "train"
