"""Patterns, AdamW's groups and the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from engine_toy import TRAINS, Toy

from mmmoe.engine.groups import adamw, freeze, parameter_groups, rates, set_rates, trainable_parameters
from mmmoe.engine.spec import OptimizerSpec, RateRule, ScheduleSpec


def test_freeze_sets_what_trains_and_says_so() -> None:
    model = Toy()
    rows = freeze(model, TRAINS)
    assert [row.pattern for row in rows] == TRAINS
    assert rows[0].names == ("head.weight", "head.bias")
    assert rows[0].parameters == 13 * 7 + 13
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free == {name for row in rows for name in row.names}


def test_a_pattern_without_match_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match=r"'haed\.weight' matches no parameter, the nearest names are 'head\.weight'"):
        freeze(Toy(), ["head.*", "haed.weight"])


def test_patterns_see_canonical_names() -> None:
    rows = freeze(Toy(), ["lm.*"], lambda name: name.replace("head.", "lm."))
    assert rows[0].names == ("lm.weight", "lm.bias")


def test_two_parameters_of_one_name_are_refused() -> None:
    model = Toy()
    freeze(model, ["blocks.*"])
    with pytest.raises(ValueError, match="share the name"):
        trainable_parameters(model, lambda name: name.replace("blocks.1", "blocks.0"))


def test_groups_follow_rules_and_spare_vectors_from_decay() -> None:
    model = Toy()
    freeze(model, TRAINS)
    spec = OptimizerSpec(lr=1.0, rates=[RateRule(match="head.*", lr=0.5)], weight_decay=0.1)
    groups = parameter_groups(trainable_parameters(model), spec)
    assert [(group["rate"], group["weight_decay"]) for group in groups] == [(0, 0.1), (0, 0.0), (1, 0.1), (1, 0.0)]
    assert [id(tensor) for tensor in groups[2]["params"]] == [id(model.head.weight)]
    assert id(model.marks) in [id(tensor) for tensor in groups[1]["params"]]
    optimizer = adamw(groups, spec)
    set_rates(optimizer, [0.3, 0.2])
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3, 0.2, 0.2]
    with pytest.raises(ValueError, match=r"optimizer\.rates: 'tower\.\*' matches no parameter"):
        parameter_groups(trainable_parameters(model), OptimizerSpec(lr=1.0, rates=[RateRule(match="tower.*", lr=1.0)]))


def test_schedule_in_closed_form() -> None:
    optimizer = OptimizerSpec(lr=2.0, rates=[RateRule(match="x", lr=1.0)])
    cosine = ScheduleSpec(kind="cosine", warmup_ratio=0.2, final_ratio=0.1)
    assert rates(cosine, optimizer, 0, 10) == [1.0, 0.5]
    assert rates(cosine, optimizer, 1, 10) == [2.0, 1.0]
    assert rates(cosine, optimizer, 6, 10) == pytest.approx([2.0 * (0.1 + 0.9 * 0.5), 0.1 + 0.9 * 0.5])
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8))
    assert rates(cosine, optimizer, 9, 10)[1] == pytest.approx(expected)
    linear = ScheduleSpec(kind="linear", warmup_ratio=0.0)
    assert [rates(linear, optimizer, step, 4)[1] for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = ScheduleSpec(kind="constant", warmup_ratio=0.0)
    assert rates(constant, optimizer, 3, 4) == [2.0, 1.0]


def test_start_of_moments_equals_torchs_own_first_step() -> None:
    from mmmoe.engine.groups import start_moments

    spec = OptimizerSpec(lr=0.1)
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    seeded, plain = adamw([{"params": [ours], "rate": 0}], spec), adamw([{"params": [theirs], "rate": 0}], spec)
    start_moments(seeded, [ours], 0)
    for optimizer, tensor in ((seeded, ours), (plain, theirs)):
        set_rates(optimizer, [0.1])
        tensor.grad = torch.tensor([1.0, -2.0, 0.5])
        optimizer.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(seeded.state[ours]["step"], plain.state[theirs]["step"])
