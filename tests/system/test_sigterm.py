"""A scheduler's SIGTERM, to a launcher or to one process, saves the state; the run goes on as if none had come."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from timeline import PLACES, Moment, check_same, events_of, hit, overrides
from warm import Command

STOPPED = 75


def assert_one_process_is_asked_in_the_evaluation(command: Command) -> None:
    while "stage mole is done" not in " ".join(command.said().split()):
        assert command.status() is None, command.said()
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(command.workers()[1].pid, signal.SIGTERM)
    assert command.ended() == STOPPED, command.said()


def many_questions(project: Path, file: Path) -> str:
    """Writes a benchmark that takes long enough to be met by a signal; returns the setting that names it."""
    rows = [json.loads(line) for line in (project.parent / "shape.jsonl").read_text().splitlines()]
    rows = [
        {**row, "id": f"{number}", "image": str(project.parent / row["image"])}
        for number, row in enumerate(row for _ in range(20) for row in rows)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return f"evaluation.benchmarks.0.file={file}"


@pytest.mark.parametrize(
    "engine", [pytest.param("local", marks=pytest.mark.slow), pytest.param("deepspeed", marks=pytest.mark.long)]
)
def test_run_that_is_asked_to_stop_in_every_stage_equals_one_that_was_not(project, warm, tmp_path, engine):
    settings = (f"engine.kind={engine}", many_questions(project, tmp_path / "questions.jsonl"))
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
    assert_one_process_is_asked_in_the_evaluation(warm.start(*arguments))
    stopped = [event["stage"] for event in events_of(run) if event["event"] == "stopped"]
    assert stopped[:4] == ["language", "align", "mole", "mole"]
    warm.start(*arguments).finish()
    check_same(run, whole)
