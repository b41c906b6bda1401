"""A scheduler's SIGTERM, to a launcher or to one process, saves the state; the run goes on as if none had come."""

from __future__ import annotations

import json
import signal

import pytest
from timeline import PLACES, Moment, check_same, events_of, hit, overrides

pytestmark = pytest.mark.slow

SLOW_QUESTIONS = "evaluation.bootstrap=200000"
"""An evaluation that a signal can meet."""
STOPPED = 75


@pytest.mark.parametrize("engine", ["local", pytest.param("deepspeed", marks=pytest.mark.long)])
def test_run_that_is_asked_to_stop_in_every_stage_equals_one_that_was_not(project, warm, tmp_path, engine):
    settings = (f"engine.kind={engine}", SLOW_QUESTIONS)
    whole, run = tmp_path / "whole/runs/small", tmp_path / "asked/runs/small"
    warm.start("run", project, *overrides(tmp_path / "whole", *settings)).finish()
    arguments: list[object] = ["run", project, *overrides(tmp_path / "asked", *settings)]
    for place, victim in (
        (("language", 2), "launcher"),
        (("align", 2), "process 1"),
        (("mole", 2), "process 0"),
        (("mole", 4), "launcher"),
        (("mole", "done"), "launcher"),
    ):
        since = len(events_of(run))
        moment = Moment(PLACES.index(place), 0.0, victim)
        command = warm.start(*arguments)
        assert hit(command, run, moment, since, signal.SIGTERM) == STOPPED, command.said()
        assert "mmmoe resume" in command.said()
        arguments = ["resume", run]
    stopped = [(event["stage"], event["step"]) for event in events_of(run) if event["event"] == "stopped"]
    assert len(stopped) == 4, json.dumps(stopped)
    warm.start(*arguments).finish()
    check_same(run, whole)
