"""Killed again and again, a run still ends as one that nobody touched."""

from __future__ import annotations

import random

import pytest
from timeline import check_same, kill_at, moments, overrides, watch

DEEPSPEED = "engine.kind=deepspeed"
LOCAL = "engine.kind=local"
NO_DROPOUT = ("stages.mole.adapters.0.dropout=0", "stages.mole.adapters.1.dropout=0")


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long)])
def test_run_killed_at_random_moments_equals_one_that_was_not_bit_for_bit(project, warm, tmp_path, kills):
    whole, run = tmp_path / "whole/runs/small", tmp_path / "killed/runs/small"
    times = watch(warm.start("run", project, *overrides(tmp_path / "whole", DEEPSPEED)), whole)
    arguments = ["run", project, *overrides(tmp_path / "killed", DEEPSPEED)]
    for moment in moments(times, kills, seed=9):
        kill_at(warm, arguments, run, moment)
        arguments = ["resume", run]
    warm.start(*arguments).finish()
    check_same(run, whole)


@pytest.mark.long
def test_run_killed_and_resumed_on_other_processes_and_engines_equals_one_that_was_not_within_rounding(
    project, warm, tmp_path
):
    # Dropout differs by process, so rounding is the only difference only without it.
    whole, run = tmp_path / "whole/runs/small", tmp_path / "killed/runs/small"
    times = watch(warm.start("run", project, *overrides(tmp_path / "whole", DEEPSPEED, *NO_DROPOUT)), whole)
    arguments = ["run", project, *overrides(tmp_path / "killed", DEEPSPEED, *NO_DROPOUT)]
    draw = random.Random(9)
    for moment in moments(times, 10, seed=10):
        kill_at(warm, arguments, run, moment)
        arguments = ["resume", run, f"engine.processes={draw.choice((1, 2, 4))}", draw.choice((DEEPSPEED, LOCAL))]
    warm.start(*arguments).finish()
    check_same(run, whole, rtol=1e-5)
