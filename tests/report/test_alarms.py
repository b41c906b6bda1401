"""The alarm rule on counts of known shares."""

import numpy as np
import pytest

from mmmoe.report.alarms import Alarm, find_alarms, sentences
from mmmoe.report.router_counts import RouterCounts, counts_of, padded


def alarms(*counts, k=1, positions=None):
    names = tuple(f"layer {at}" for at in range(len(counts)))
    return find_alarms(RouterCounts(names, padded(counts), positions or sum(counts[0]) / k))


def kinds(*counts, **options):
    return [(alarm.kind, alarm.router, alarm.experts) for alarm in alarms(*counts, **options)]


def test_dead_and_collapsed_with_one_choice():
    assert kinds([1, 999], [500, 500], [40, 960]) == [
        ("dead", "layer 0", (0,)), ("collapsed", "layer 0", (1,)), ("collapsed", "layer 2", (1,)),
    ]  # fmt: skip


def test_the_bounds_are_under_one_and_over_95_percent():
    assert kinds([100, 9_900, 0]) == [("dead", "layer 0", (2,)), ("collapsed", "layer 0", (1,))]
    assert kinds([50, 950]) == []
    assert kinds([49, 951]) == [("collapsed", "layer 0", (1,))]
    assert kinds([10, 590, 400]) == []
    assert kinds([9, 591, 400]) == [("dead", "layer 0", (0,))]


def test_among_many_experts_dead_is_under_a_tenth_of_an_equal_share():
    rest = [1000] * 99
    assert kinds([101, *rest]) == []
    assert kinds([99, *rest]) == [("dead", "layer 0", (0,))]


def test_with_two_choices_an_expert_has_at_most_half_and_a_pair_can_collapse():
    assert kinds([500, 500, 500, 500], k=2) == []
    assert kinds([990, 980, 15, 15], k=2) == [
        ("dead", "layer 0", (2,)), ("dead", "layer 0", (3,)), ("collapsed", "layer 0", (0, 1)),
    ]  # fmt: skip
    assert kinds([1000, 400, 300, 300], k=2) == [], "one expert that everybody takes is not the whole router"


def test_where_nearly_all_are_chosen_even_routing_is_no_collapse():
    even = [1000] * 8
    assert kinds(even, k=7) == []
    assert kinds([*[1000] * 7, 300], k=7) == [], "the last still has a third of its share"
    assert kinds([*[1000] * 7, 60], k=7, positions=1009) == [
        ("dead", "layer 0", (7,)), ("collapsed", "layer 0", (0, 1, 2, 3, 4, 5, 6)),
    ]  # fmt: skip


def test_with_top_p_k_is_the_mean_rounded_up():
    assert kinds([1000, 300, 2, 2], positions=1000) == [
        ("dead", "layer 0", (2,)), ("dead", "layer 0", (3,)), ("collapsed", "layer 0", (0, 1)),
    ]  # fmt: skip
    assert kinds([1000, 5, 5, 5], positions=1000)[-1] == ("collapsed", "layer 0", (0,)), "a few positions count not"
    assert kinds([700, 400, 300, 300], positions=1000) == []


def test_no_choice_no_alarm():
    assert kinds([1000]) == []
    assert kinds([1000, 1000], k=2) == []


def test_layers_with_unequal_numbers_of_experts():
    assert kinds([500, 500], [250, 250, 250, 250], [1000, 0, 0, 0], [1000]) == [
        ("dead", "layer 2", (1,)), ("dead", "layer 2", (2,)), ("dead", "layer 2", (3,)), ("collapsed", "layer 2", (0,)),
    ]  # fmt: skip


def test_too_little_to_tell():
    assert kinds([199, 0]) == []
    assert kinds([200, 0]) != []
    assert kinds([1] * 128) == []
    assert kinds([0, 0], positions=5) == []


def test_k_is_read_off_exactly_from_choices_and_positions():
    row = {"step": 1, "positions": 9, "load": {"a": {"text": {"0": [10, 8], "1": [3, 9, 6]}, "image": {"0": [0, 0]}}}}
    counts = counts_of(row)
    assert counts.names == ("layer 0", "layer 1")
    assert counts.num_chosen().tolist() == [2, 2]
    assert counts.num_experts().tolist() == [2, 3]
    assert np.isnan(counts.count_RE[0, 2])
    assert counts.shares()[1].tolist() == pytest.approx([3 / 18, 0.5, 6 / 18])


def test_layers_are_in_the_order_of_their_numbers():
    row = {"step": 1, "positions": 2, "load": {"a": {"text": {"10": [1, 1], "9": [2, 0]}}}}
    assert counts_of(row).names == ("layer 9", "layer 10")


def test_lines_without_routers_have_no_counts():
    assert counts_of({"step": 1}) is None
    assert counts_of({"step": 1, "load": {}, "positions": 0}) is None


def test_sentences_put_a_routers_dead_experts_together():
    found = alarms([1, 2, 3, 9994], [0, 50, 49, 1])
    assert sentences(found) == [
        "layer 0: experts 0, 1 and 2 get at most 0.03 % of the choices: they are hardly trained",
        "layer 0: expert 3 gets 100 % of the choices: the router has collapsed onto it",
    ]
    pair = Alarm("collapsed", "q", (1, 3), 0.97)
    assert sentences([pair]) == ["q: experts 1 and 3 get 97 % of the choices: the router has collapsed onto them"]
    assert Alarm.read(pair.record()) == pair
