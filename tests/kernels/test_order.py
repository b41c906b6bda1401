"""The order of slots by expert: both paths of the CPU against the definition."""

from __future__ import annotations

import pytest
import torch

from mmmoe.kernels.order import order_by_expert


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("slots", [0, 1, 50, 40_000])
@pytest.mark.parametrize("capacity", [2**62, 5])
def test_slots_come_by_expert_and_then_by_number(slots, capacity):
    expert = torch.randint(-1, 6, (slots,), generator=torch.Generator().manual_seed(slots))
    order = order_by_expert(expert, 6, capacity)
    kept = [[s for s in range(slots) if expert[s] == e][:capacity] for e in range(6)]
    flat = [s for own in kept for s in own]
    assert order.count_E.tolist() == [len(own) for own in kept]
    assert order.offset_E1.tolist() == [sum(map(len, kept[:e])) for e in range(7)]
    assert order.order_S.tolist() == flat + [-1] * (slots - len(flat))
    place = {s: at for at, s in enumerate(flat)}
    assert order.inverse_S.tolist() == [place.get(s, -1) for s in range(slots)]


def test_the_number_of_threads_does_not_matter(threads):
    expert = torch.randint(0, 9, (60_000,))
    many = order_by_expert(expert, 9)
    threads(1)
    assert all(torch.equal(a, b) for a, b in zip(many, order_by_expert(expert, 9), strict=True))
