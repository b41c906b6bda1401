"""Routing labels from losses, and the columns that losses are kept in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from routed_source import write_routed

from mmmoe.data import sample_column
from mmmoe.data.routing_labels import number_of, routing_in, routing_of
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shards import ShardSet

NAN, INF = math.nan, math.inf

TABLE = {
    "lower than the base": ((1.0, 0.9, 1.1, 0.5), (1, 0, 1)),
    "equal is not lower": ((1.0, 1.0, 1.0, 1.0), (0, 0, 0)),
    "by a hair": ((1.0, 1.0 - 1e-7, 1.0 + 1e-7, 2.0), (1, 0, 0)),
    "the base alone is no label": ((0.1, 0.2, 0.3, 0.4), (0, 0, 0)),
    "three of five": ((1.0, 0.5, 0.9, 0.4, 0.8, 0.3), (1, 0, 1, 0, 1)),
    "ties by order": ((1.0, 0.5, 0.5, 0.5, 0.5, 0.5), (1, 1, 1, 0, 0)),
    "a tie at the end": ((1.0, 0.7, 0.2, 0.7, 0.1, 0.7), (1, 1, 0, 1, 0)),
    "not finite marks nobody": ((1.0, NAN, 0.5, INF), (0, 1, 0)),
    "an unreadable sample": ((NAN, NAN, NAN, NAN), (0, 0, 0)),
    "a base that could not be read": ((NAN, 0.1, 0.2, 0.3), (0, 0, 0)),
    "no experts at all": ((1.0,), ()),
}


@pytest.mark.parametrize("case", TABLE)
def test_who_is_marked(case):
    losses, label = TABLE[case]
    assert routing_of(losses) == label


def test_on_any_table_the_best_of_those_below_the_base_are_marked():
    rng = np.random.default_rng(0)
    for losses in rng.random((300, 8)).round(2).tolist():
        for most in (1, 2, 3, 7):
            label = routing_of(losses, most)
            below = [loss for loss in losses[1:] if loss < losses[0]]
            marked = [loss for loss, bit in zip(losses[1:], label, strict=True) if bit]
            assert sorted(marked) == sorted(below)[:most]


def test_a_routing_is_one_number_and_the_first_of_it_are_kept():
    rng = np.random.default_rng(1)
    for routing in rng.integers(0, 2, (200, 26)).tolist():
        number = float(np.float64(number_of(routing)))
        assert routing_in(number, 26, 26) == tuple(routing)
        first = [expert for expert, bit in enumerate(routing) if bit][:2]
        assert [expert for expert, bit in enumerate(routing_in(number, 26, 2)) if bit] == first
    assert routing_in(NAN, 3) == (0, 0, 0)


@pytest.fixture
def shards(tmp_path):
    return ShardSet(write_routed(tmp_path / "source", 12))


def filled(tmp_path, key, shards, monkeypatch, offset=0.0):
    monkeypatch.setattr(sample_column, "PART", 2)
    column = SampleColumn(tmp_path / "losses", key, shards)
    for part in column.missing():
        first = column.first(part)
        column.write(part, np.arange(first, first + part.stop - part.start) + offset)
    return column


def test_a_column_has_a_loss_for_each_sample(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_column, "PART", 2)
    column = SampleColumn(tmp_path / "losses", "judge", shards)
    spans = [(part.number, part.shard, part.start, part.stop) for part in column.parts()]
    assert spans == [
        (0, 0, 0, 2), (1, 0, 2, 4), (2, 0, 4, 5), (3, 1, 0, 2), (4, 1, 2, 4), (5, 1, 4, 5), (6, 2, 0, 2)
    ]  # fmt: skip
    assert column.missing() == column.parts()
    with pytest.raises(ValueError, match="were never computed; fill their column first"):
        column.number(0)
    filled(tmp_path, "judge", shards, monkeypatch)
    assert column.missing() == []
    assert [column.number(index) for index in range(12)] == list(range(12))
    assert [SampleColumn(tmp_path / "losses", "judge", shards).number(index) for index in (11, 4, 5)] == [11, 4, 5]
    assert not list((tmp_path / "losses").rglob("*.tmp"))


def test_other_judges_and_other_shards_have_columns_of_their_own(shards, tmp_path, monkeypatch):
    filled(tmp_path, "judge", shards, monkeypatch)
    other = filled(tmp_path, "another", shards, monkeypatch, offset=100)
    assert [other.number(3), SampleColumn(tmp_path / "losses", "judge", shards).number(3)] == [103, 3]
    changed = ShardSet(write_routed(tmp_path / "changed", 12, lambda number, row: row | {"id": "other"}))
    assert SampleColumn(tmp_path / "losses", "judge", changed).missing() != []
    same = ShardSet(write_routed(tmp_path / "again", 12))
    assert SampleColumn(tmp_path / "losses", "judge", same).missing() == []
