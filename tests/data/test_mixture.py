import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmoe.data.mixture import BLOCK, Order


def test_every_sample_once_per_epoch():
    sizes = [37, 5, 1]
    draws = Order(sizes, [2.0, 1.0, 0.5], seed=3).draws(range(6 * BLOCK))
    for source, size in enumerate(sizes):
        mine = draws.source == source
        epochs, index = draws.epoch[mine], draws.index[mine]
        assert epochs.tolist() == sorted(epochs.tolist())
        for epoch in range(int(epochs.max())):
            assert sorted(index[epochs == epoch].tolist()) == list(range(size))


def test_epochs_are_in_different_orders_and_look_shuffled():
    order = Order([1000], [1.0], seed=0)
    index = order.draws(range(2000)).index
    first, second = index[:1000], index[1000:]
    assert sorted(first.tolist()) != first.tolist()
    # Rank correlation of independent permutations has standard deviation 1/sqrt(999) = 0.032.
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_proportions_are_exact():
    order = Order([10, 20, 30], [0.1, 0.2, 0.7], seed=1)
    draws = order.draws(range(10 * BLOCK))
    assert np.bincount(draws.source).tolist() == [BLOCK, 2 * BLOCK, 7 * BLOCK]
    assert order.quotas(10**12) == [10**11, 2 * 10**11, 7 * 10**11]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(0, 10**9), st.integers(1, 5000))
def test_quotas_never_fall_and_stay_near_their_share(weights, start, more):
    order = Order([7] * len(weights), weights, seed=0)
    before, after = order.quotas(start), order.quotas(start + more)
    assert sum(before) == start
    assert all(b <= a for b, a in zip(before, after, strict=True))
    # Each of the floors up to a source moves it by less than one.
    assert all(abs(b - start * w / sum(weights)) < len(weights) + 1e-3 for b, w in zip(before, weights, strict=True))


def test_a_position_is_the_same_however_it_is_reached():
    sizes, weights = [50, 80], [1.0, 3.0]
    whole = Order(sizes, weights, seed=9).draws(range(3000))
    other = Order(sizes, weights, seed=9)
    for position in (2999, 0, 1024, 1023, 517):
        assert other.at(position) == whole[position]
    for world in (2, 3, 8):
        for rank in range(world):
            mine = other.draws(range(rank, 3000, world))
            assert all(mine[i] == whole[rank + i * world] for i in range(0, len(mine), 97))


def test_far_positions_cost_no_replay():
    draw = Order([558_128, 665_298], [1.0, 1.2], seed=4).at(10**12)
    assert 0 <= draw.index < 665_298
    assert draw.epoch > 100_000


def mix(value):
    """SplitMix64's published finaliser (Steele, Lea, Flood 2014) in plain integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def key_of(*parts):
    key = 0
    for part in parts:
        key = mix(key ^ part)
    return key


def reference_draws(sizes, weights, seed, count):
    """The order as its docstrings define it, one position at a time, without numpy."""
    drawn, sequence = [0] * len(sizes), []
    for block in range(-(-count // BLOCK)):
        quotas = []
        for end in (block * BLOCK, (block + 1) * BLOCK):
            left, row = end, []
            for i in range(len(sizes)):
                row.append(left * weights[i] // sum(weights[i:]))
                left -= row[-1]
            quotas.append(row)
        labels = [i for i in range(len(sizes)) for _ in range(quotas[1][i] - quotas[0][i])]
        for place in sorted(range(BLOCK), key=lambda p: mix(p ^ key_of(seed, 1, block))):
            source = labels[place]
            epoch, value = divmod(drawn[source], sizes[source])
            drawn[source] += 1
            half = max(1, ((sizes[source] - 1).bit_length() + 1) // 2)
            key = mix(mix(source ^ key_of(seed, 2, 0)) ^ epoch)
            while True:
                left, right = value >> half, value % 2**half
                for number in range(6):
                    left, right = right, left ^ (mix(right ^ mix((key + number) % 2**64)) % 2**half)
                value = left << half | right
                if value < sizes[source]:
                    break
            sequence.append((source, epoch, value))
    return sequence[:count]


def test_equals_the_literal_loop():
    sizes, weights = [10, 100, 33], [1, 2, 4]
    draws = Order(sizes, weights, seed=5).draws(range(2500))
    found = [(d.source, d.epoch, d.index) for d in (draws[i] for i in range(2500))]
    assert found == reference_draws(sizes, weights, 5, 2500)


def test_seeds_differ():
    a, b = (Order([1000], [1.0], seed).draws(range(100)).index.tolist() for seed in (0, 1))
    assert a != b


@pytest.mark.parametrize(("sizes", "weights"), [([0], [1.0]), ([3], [0.0]), ([3], [-1.0]), ([3, 4], [1.0]), ([], [])])
def test_refuses_what_cannot_be_mixed(sizes, weights):
    with pytest.raises(ValueError, match=r"positive|one weight a source"):
        Order(sizes, weights, seed=0)
