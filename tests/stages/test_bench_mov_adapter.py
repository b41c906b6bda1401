"""bench mov_adapter: both ways say the same, the table is whole, a wrong size is told."""

from __future__ import annotations

import pytest
import torch

from mmmoe.stages.bench_mov_adapter import BOUNDS, EXPERTS, MASKED, bench_mov_adapter, draw

TINY = {"images": 3, "side": 4, "channels": 64, "layers": 2, "width": 8, "rounds": 1}


@pytest.mark.parametrize("number", range(len(EXPERTS) + 1))
def test_both_ways_say_the_same_and_experts_take_part(number):
    batch = draw(TINY, torch.device("cpu"))
    routing = batch.routing(number)
    assert routing.sum(1).tolist() == [number] * 3
    assert number in (0, len(EXPERTS)) or not torch.equal(routing[0], routing[1])
    tokens = batch.routed(number)()
    torch.testing.assert_close(tokens, batch.masked(number)(), atol=1e-5, rtol=1e-4)
    assert torch.allclose(tokens, batch.masked(0)(), atol=1e-3) == (number == 0)


def test_the_table_has_a_row_for_each_number_of_experts(monkeypatch):
    monkeypatch.setattr("mmmoe.kernels.measure.LEAST_SECONDS", 0.0)
    results = bench_mov_adapter(TINY)
    rows = [f"{what}, {number} routed" for what in ("an answer", "a training step") for number in range(8)]
    assert [result.name for result in results] == rows
    for number, result in enumerate(results):
        assert (result.versus, result.sizes, result.bound) == (MASKED, TINY, BOUNDS.get(number % 8))
        assert result.error is not None
        assert result.error < 1e-5
        assert 0 < result.low <= result.high


def test_an_unknown_size_is_told():
    with pytest.raises(ValueError, match=r"unknown sizes \['grid'\]; mov_adapter has"):
        bench_mov_adapter({"grid": 3})
