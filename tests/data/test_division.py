from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmoe.data.division import divide_pure

KINDS = [("text",), ("image", "text"), ("speech", "text"), ("image", "speech", "text")]
samples = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 9)), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(samples, st.integers(1, 6), st.sampled_from([1, 2, 3, 4]))
def test_every_sample_once_in_pure_micro_batches_as_many_on_each_process(drawn, micro, world):
    combinations, lengths = [c for c, _ in drawn], [n for _, n in drawn]
    ranks = divide_pure(combinations, lengths, micro, world)
    assert len(ranks) == world
    assert len({len(part) for part in ranks}) == 1
    parts = [part for rank in ranks for part in rank]
    assert sorted(place for part in parts for place in part) == list(range(len(drawn)))
    assert all(len(part) <= micro and len({combinations[place] for place in part}) <= 1 for part in parts)
    for part in parts:
        assert all(lengths[a] >= lengths[b] for a, b in pairwise(part))
    # No more than it takes: as few as hold each combination, brought to a multiple of the processes.
    least = sum(-(-combinations.count(c) // micro) for c in set(combinations))
    assert len(parts) == -(-least // world) * world


def test_the_fullest_are_cut_before_any_process_idles():
    ranks = divide_pure([KINDS[0]] * 5 + [KINDS[1]], [1] * 6, micro_batch=8, world=4)
    assert sorted(len(part) for rank in ranks for part in rank) == [1, 1, 2, 2]


def test_what_cannot_be_cut_is_made_up_by_empty_ones():
    ranks = divide_pure([KINDS[0], KINDS[1], KINDS[2]], [1, 2, 3], micro_batch=4, world=4)
    assert sorted(len(part) for rank in ranks for part in rank) == [0, 1, 1, 1]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_one_kind_divides_like_a_list(world):
    ranks = divide_pure([KINDS[0]] * 8, list(range(8)), micro_batch=2, world=world)
    assert [len(rank) for rank in ranks] == [4 // world] * world
    assert ranks[0][0] == [7, 6]
