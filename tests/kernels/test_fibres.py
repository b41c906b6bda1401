"""The CUDA kernels on the CPU: equal to the references under any schedule, and no barrier of theirs is idle."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, assert_same, is_same
from host_kernels import barriers, fibres, host_library, needs_toolkit, survives, without_barrier

from mmmoe.kernels.combine.op import gather_sum
from mmmoe.kernels.lora_ffn.reference import lora_ffn_reference
from mmmoe.kernels.route_topk.op import route_topk

SCHEDULES = 20
LORA_FFN = ["order.cu", "grouped_lora.cu", "lora_ffn.cu", "lora_ffn_backward.cu"]
FILES = {  # file with barriers -> the kernels that are built with it, the cases that run it
    "order.h": (["order.cu"], ["order"]),
    "route_topk.cu": (["order.cu", "route_topk.cu"], ["route_topk"]),
    "combine.cu": (["combine.cu"], ["combine"]),
    "grouped_lora.cu": (["order.cu", "grouped_lora.cu"], ["grouped_lora"]),
    "slot_groups.h": (LORA_FFN, ["lora_ffn"]),
    "lora_ffn_blocks.h": (LORA_FFN, ["lora_ffn"]),
}
MUTATIONS = [(file, number) for file in FILES for number in range(len(barriers(file)))]


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("by_priority", [False, True], ids=["random", "priority"])
@pytest.mark.parametrize("op", CASES)
def test_the_kernels_equal_the_reference_under_twenty_schedules(op, by_priority):
    loaded = host_library()
    for seed in range(SCHEDULES):
        check, own, reference = CASES[op](seed)
        want = check(reference)
        with fibres(loaded, seed, by_priority=by_priority):
            found = check(own)
        assert_same(found, want)


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize(("file", "number"), MUTATIONS, ids=str)
def test_no_barrier_can_be_left_out(file, number, tmp_path):
    kernels, ops = FILES[file]
    broken = without_barrier(file, number, kernels, tmp_path)

    def is_right(op, seed):
        check, own, reference = CASES[op](seed)
        want = check(reference)

        def runs():
            with fibres(broken, seed, by_priority=seed % 2 == 0):
                return is_same(check(own), want)

        return survives(runs)

    assert not all(is_right(op, seed) for op in ops for seed in range(2 * SCHEDULES)), "no schedule showed it"


def test_every_file_with_barriers_is_mutated():
    from mmmoe.kernels.build import source_folder

    with_barriers = {p.name for p in source_folder().glob("*") if p.suffix in (".cu", ".h") and p.name != "host.h"}
    assert {name for name in with_barriers if barriers(name)} == set(FILES)


@needs_toolkit
@pytest.mark.slow
@pytest.mark.parametrize("shape", [
    (130, 8, 320, 5, 20, 2, torch.bfloat16),  # several runs of tokens, splits of the columns, chunks of ranks
    (130, 8, 300, 5, 20, 2, torch.float32),
    (20, 3, 5, 1024, 2, 8, torch.float32),
], ids=str)  # fmt: skip
def test_lora_ffn_over_many_blocks(shape):
    check, own, reference = CASES["lora_ffn"](1, shape)
    with fibres(host_library()):
        found = check(own)
    assert_same(found, check(reference))


@needs_toolkit
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_half_types_of_lora_ffn_are_as_good_as_the_loop_in_half_types(seed):
    check, own, exact = CASES["lora_ffn"](seed)
    with fibres(host_library()):
        found = check(own)
    for result, want, loop in zip(found, check(exact), check(lora_ffn_reference), strict=True):
        assert (result.double() - want.double()).norm() <= 1.5 * (loop.double() - want.double()).norm()


@needs_toolkit
def test_a_row_with_nan_gets_nan_gates_from_the_kernels():
    logits = torch.randn(70, 8)
    logits[5, 3] = float("nan")
    with fibres(host_library()):
        routing = route_topk(logits, 2)
    assert routing.gate_NK.isnan().all(1).nonzero().flatten().tolist() == [5]
    assert routing.gate_NK.isnan().any(1).nonzero().flatten().tolist() == [5]
    assert ((routing.expert_NK >= 0) & (routing.expert_NK < 8)).all()


@needs_toolkit
def test_a_place_that_does_not_exist_makes_its_token_nan(monkeypatch):
    monkeypatch.setattr("mmmoe.kernels.combine.op.check_range", lambda *_: None)  # as on a GPU, nobody looks
    with fibres(host_library()):
        y = gather_sum(torch.ones(4, 8), None, torch.tensor([0, 1, -1, 9]), 2)
    assert (y[0] == 2).all()
    assert y[1].isnan().all()
