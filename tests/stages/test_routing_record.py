"""A step's line about its routers: by source, modality and layer, and by router where a layer has several."""

from __future__ import annotations

import math

import pytest
import torch

from mmmoe.models.output import RoutingStatistics
from mmmoe.report.router_counts import counts_of
from mmmoe.stages.routing_record import routing_record


def statistics(sites, layers, experts):
    none = torch.zeros(1)
    return RoutingStatistics(sites, layers, experts, ("text", "image"), none, none, none, none)


def test_layers_with_unequal_numbers_of_experts_and_two_choices():
    routing = statistics(("l.4.mlp", "l.7.mlp"), (4, 7), (2, 4))
    load_SLME = torch.zeros(2, 2, 2, 4, dtype=torch.float64)
    load_SLME[0, 0, 0, :2], load_SLME[0, 1, 0] = torch.tensor([5.0, 5.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    load_SLME[0, 0, 1, :2], load_SLME[0, 1, 1] = torch.tensor([3.0, 3.0]), torch.tensor([0.0, 0.0, 3.0, 3.0])
    entropy_L = torch.tensor([8 * math.log(2), 4 * math.log(4)])
    row = routing_record(routing, ["shapes", "unused"], load_SLME, entropy_L, 8.0)
    assert row["load"] == {
        "shapes": {"text": {"4": [5, 5], "7": [4, 3, 2, 1]}, "image": {"4": [3, 3], "7": [0, 0, 3, 3]}}
    }
    assert row["entropy"] == pytest.approx([1.0, 0.5])
    assert "load_by_router" not in row
    assert counts_of(row).num_chosen().tolist() == [2, 2]


def test_several_routers_of_a_layer_are_told_one_by_one_whatever_their_experts():
    routing = statistics(("l.0.q", "l.0.mlp"), (0, 0), (2, 3))
    load_SLME = torch.tensor([[[[6.0, 2, 0], [0, 0, 0]], [[1, 2, 5], [0, 0, 0]]]], dtype=torch.float64)
    row = routing_record(routing, ["a"], load_SLME, torch.tensor([0.0, 8 * math.log(3)]), 8.0)
    assert row["load_by_router"] == {"l.0.q": [6, 2], "l.0.mlp": [1, 2, 5]}
    assert row["load"] == {"a": {"text": {"0": [7, 4, 5]}}}
    assert row["entropy"] == pytest.approx([0.5])
    assert counts_of(row).names == ("l.0.q", "l.0.mlp")


def test_one_expert_leaves_nothing_to_be_undecided_about():
    routing = statistics(("l.0.mlp",), (0,), (1,))
    row = routing_record(routing, ["a"], torch.ones(1, 1, 2, 1), torch.zeros(1), 2.0)
    assert row["entropy"] == [None]
