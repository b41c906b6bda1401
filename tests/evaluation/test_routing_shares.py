"""How often experts are named, by the model and by labels, domain by domain."""

from __future__ import annotations

from mmmoe.evaluation.routing import RoutingShare, routing_shares


def test_shares_are_of_each_domains_own_questions():
    predicted = [(1, 0), (0, 1), (1, 1), (0, 0)]
    losses = [(1.0, 0.5, 2.0), (1.0, 2.0, 2.0), (1.0, 0.5, 0.6), (1.0, 2.0, 0.1)]
    assert routing_shares(["a", "b", "a", "a"], predicted, losses) == (
        RoutingShare("a", 3, [2 / 3, 1 / 3], [2 / 3, 2 / 3]),
        RoutingShare("b", 1, [0.0, 1.0], [0.0, 0.0]),
    )
