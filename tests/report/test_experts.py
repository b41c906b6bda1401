import numpy as np
import pytest

from mmmoe.report.experts import alarms, domain_split, expert_load, short_names
from mmmoe.report.files import StageLog


def stage(*loads):
    return StageLog("moe", tuple({"step": at + 1, "load": load} for at, load in enumerate(loads)))


def test_shares_weigh_domains_by_their_tokens():
    load = expert_load(stage({"a": {"x.0.mlp": [30, 10]}, "b": {"x.0.mlp": [0, 60]}}))
    assert load.layers == ("layer 0",)
    assert np.allclose(load.shares["a"], [[0.75, 0.25]])
    assert np.allclose(load.shares["b"], [[0.0, 1.0]])
    assert np.allclose(load.overall, [[0.3, 0.7]])
    assert domain_split(load) == [("layer 0", pytest.approx(0.75))]


def test_only_the_end_of_the_stage_counts():
    early, late = {"a": {"m": [100, 0]}}, {"a": {"m": [50, 50]}}
    load = expert_load(stage(*[early] * 8, *[late] * 2))
    assert np.allclose(load.overall, [[0.5, 0.5]])


def test_alarms_name_layer_and_expert():
    load = expert_load(stage({"a": {"x.0": [1, 999], "x.1": [500, 500], "x.2": [40, 960]}}))
    first, second, third = alarms(load)
    assert first.startswith("moe, layer 0: expert 0 gets 0.1 %")
    assert "layer 0: expert 1" in second
    assert "collapsed" in second
    assert "layer 2: expert 1" in third


def test_one_expert_and_many_experts_raise_no_false_alarm():
    assert alarms(expert_load(stage({"a": {"m": [100]}}))) == []
    assert alarms(expert_load(stage({"a": {"m": [1] * 128}}))) == []


def test_no_routers_no_load():
    assert expert_load(StageLog("s", ({"step": 1, "loss": 1.0},))) is None


def test_short_names():
    assert short_names(["l.0.mlp", "l.11.mlp"]) == ["layer 0", "layer 11"]
    assert short_names(["a.0.b.1", "a.0.b.2"]) == ["a.0.b.1", "a.0.b.2"]
    assert short_names(["enc.0", "dec.0"]) == ["enc.0", "dec.0"]
