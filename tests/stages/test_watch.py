"""Alarms of a stage as it trains: over the last steps, once each, and no other after a resume."""

from __future__ import annotations

import json
import logging

import pytest

from mmmoe.engine.metrics import MetricsFile
from mmmoe.log import logger
from mmmoe.stages.watch import LEAST_WINDOW, RouterWatch


def line(step, *layers, k=1, **fields):
    """Returns a step's line; layers with as many choices each."""
    load = {"a": {"text": {str(at): list(counts) for at, counts in enumerate(layers)}}}
    return {"step": step, "load": load, "positions": sum(layers[0]) // k, **fields}


def play(watch, lines):
    """Returns the alarms by step."""
    return {one["step"]: alarms for one in lines if (alarms := watch.see(one))}


@pytest.fixture
def said():
    """Collects what the log says."""
    texts = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append((record.levelname, record.getMessage()))
    logger().addHandler(handler)
    yield texts
    logger().removeHandler(handler)


def test_a_dead_expert_is_told_once_and_as_soon_as_the_window_is_full(said):
    found = play(RouterWatch("mole", 400), [line(step, [60, 40, 0], [33, 33, 34]) for step in range(1, 200)])
    assert found == {50: [{"kind": "dead", "router": "layer 0", "experts": [2], "share": 0.0}]}
    told = "stage mole, last 50 steps to 50: layer 0: expert 2 gets 0 % of the choices: it is hardly trained"
    assert said == [("WARNING", told)]


def test_the_window_is_a_twentieth_of_a_long_stage():
    found = play(RouterWatch("mole", 4000), [line(step, [100, 0]) for step in range(1, 400)])
    assert list(found) == [200]
    assert [alarm["kind"] for alarm in found[200]] == ["dead", "collapsed"]


def test_short_ups_and_downs_are_none():
    lines = [line(step, [100, 0] if step // 20 % 2 else [0, 100]) for step in range(1, 300)]
    assert play(RouterWatch("mole", 300), lines) == {}


def test_what_dies_later_is_told_later():
    lines = [line(step, [50, 50] if step <= 100 else [100, 0]) for step in range(1, 200)]
    kinds = {
        step: [alarm["kind"] for alarm in alarms] for step, alarms in play(RouterWatch("mole", 200), lines).items()
    }
    # 46 of the last 50 steps with one expert and 4 with both leave the other 4 %; 50 leave it nothing.
    assert kinds == {146: ["collapsed"], 150: ["dead"]}


def test_two_chosen_experts_with_half_the_choices_each():
    healthy = [line(step, [50, 50, 50, 50], k=2) for step in range(1, 60)]
    assert play(RouterWatch("mole", 60), healthy) == {}
    collapsed = [line(step, [3, 100, 1, 96], k=2) for step in range(1, 60)]
    (alarms,) = play(RouterWatch("mole", 60), collapsed).values()
    assert {"kind": "collapsed", "router": "layer 0", "experts": [1, 3], "share": 0.98} in alarms


def test_a_resumed_stage_tells_what_an_undisturbed_one_tells(tmp_path, said):
    lines = [line(step, [60, 40, 0] if step < 80 else [97, 2, 1]) for step in range(1, 150)]
    whole = play(RouterWatch("mole", 150), lines)
    assert list(whole) == [50, 127]
    for stop in (30, 49, 50, 51, 100, 127, 128, 140):
        file = MetricsFile(tmp_path / f"{stop}.jsonl")
        watch = RouterWatch("mole", 150, file.read())
        for one in lines[:stop]:
            alarms = watch.see(one)
            file.append(one | ({"alarms": alarms} if alarms else {}))
        file.truncate_after(stop - 5)
        watch = RouterWatch("mole", 150, file.read())
        for one in lines[stop - 5 :]:
            alarms = watch.see(one)
            file.append(one | ({"alarms": alarms} if alarms else {}))
        assert {row["step"]: row["alarms"] for row in file.read() if "alarms" in row} == whole


def test_each_router_of_a_layer_is_judged_by_itself():
    both = [{**line(s, [100, 100]), "positions": 100, "load_by_router": {"l.0.q": [100, 0], "l.0.k": [0, 100]}}
            for s in range(1, 60)]  # fmt: skip
    (alarms,) = play(RouterWatch("mole", 60), both).values()
    assert [(alarm["kind"], alarm["router"], alarm["experts"]) for alarm in alarms] == [
        ("dead", "l.0.q", [1]), ("collapsed", "l.0.q", [0]), ("dead", "l.0.k", [0]), ("collapsed", "l.0.k", [1]),
    ]  # fmt: skip


def test_many_alarms_do_not_fill_the_log(said):
    alarms = play(RouterWatch("mole", 60), [line(s, *[[100, 0]] * 32) for s in range(1, LEAST_WINDOW + 1)])
    assert len(alarms[50]) == 64
    assert len(said) == 9
    assert said[-1][1].endswith("and 56 more; see alarms in metrics.jsonl")
    json.dumps(alarms)


def test_stages_without_routers_have_nothing_to_watch():
    assert play(RouterWatch("align", 100), [{"step": step, "loss": 1.0} for step in range(1, 100)]) == {}
