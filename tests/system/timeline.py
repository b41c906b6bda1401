"""Where in a run a moment lies: told by what its folder holds, so that it is the same place on a slow machine."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median

import torch
import yaml
from small_project import losses
from warm import Command, Warm

from mmmoe.engine.checkpoint import read
from mmmoe.stages.ledger import RunFolder

STAGES = {"language": 6, "align": 6, "mole": 10}
"""The small project's stages, with the steps they have here."""
PLACES = [
    *((stage, step) for stage, steps in STAGES.items() for step in (*range(steps + 1), "done")),
    ("evaluated", None),
    ("finished", None),
]
"""What a run passes, in order: a stage's start (step 0), each of its lines of metrics, its end; then the end."""
SCORES = "evaluation/scores.json"
VICTIMS = ("launcher", "process 0", "process 1")


@dataclass(frozen=True)
class Moment:
    """When somebody is to be hit."""

    place: int
    """Of `PLACES`: the last that was passed."""
    delay_s: float
    """How long after."""
    victim: str


def overrides(folder: Path, *more: str) -> list[str]:
    """Returns the settings of a run that shares nothing with others, on two processes."""
    lengths = [f"stages.{stage}.training.steps={steps}" for stage, steps in STAGES.items()]
    return [f"runs={folder / 'runs'}", f"cache={folder / 'cache'}", "engine.processes=2", *lengths, *more]


def events_of(run: Path) -> list[dict]:
    return RunFolder(run).events() if (run / "ledger.jsonl").is_file() else []


def passed(run: Path, since: int) -> int:
    """Returns the last of `PLACES` that the attempt whose ledger begins at event `since` has passed, -1 if none."""
    found = -1
    for event in events_of(run)[since:]:
        stage = event.get("stage")
        if event["event"] == "stage_started":
            metrics = run / "stages" / stage / "metrics.jsonl"
            lines = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
            found = PLACES.index((stage, min(lines, STAGES[stage])))
        elif event["event"] == "stage_done":
            found = PLACES.index((stage, "done"))
        elif event["event"] in ("evaluated", "finished"):
            found = PLACES.index((event["event"], None))
    return found


def watch(command: Command, run: Path) -> list[float]:
    """Returns when an undisturbed run passes each place, and at last when it ends, in seconds."""
    times: list[float] = []
    began = time.monotonic()
    while command.status() is None:
        place = passed(run, 0)
        times += [time.monotonic() - began] * (place + 1 - len(times))
        time.sleep(0.002)
    command.finish()
    times += [time.monotonic() - began] * (len(PLACES) - len(times))
    return [*times, time.monotonic() - began]


def moments(times: list[float], count: int, seed: int) -> list[Moment]:
    """Returns random moments of a run, in order and spread over all of it.

    They are one in each of `count` equal parts of its time, in which a gap between two places counts for four usual
    gaps at most: the report is one long gap, and would take half of the moments.
    """
    draw = random.Random(seed)
    gaps = [after - before for before, after in pairwise(times)]
    weights = [min(gap, 4 * median(gaps)) for gap in gaps]
    bounds = [0.0, *accumulate(weights)]
    found = []
    for number in range(count):
        at = bounds[-1] * (number + draw.random()) / count
        place = bisect_right(bounds, at, hi=len(gaps)) - 1
        share = (at - bounds[place]) / weights[place] if weights[place] else 0.0
        found.append(Moment(place, share * gaps[place], draw.choice(VICTIMS)))
    return found


def wait_for(command: Command, run: Path, place: tuple, since: int = 0) -> None:
    """Waits until a run has passed a place; it must not end before."""
    while passed(run, since) < PLACES.index(place):
        assert command.status() is None, command.said()
        time.sleep(0.002)


def hit(command: Command, run: Path, moment: Moment, since: int, number: int, delay_s: float | None = None) -> int:
    """Sends a signal at a moment, waits for the end and returns the launcher's exit status; 0: it ended before."""
    while passed(run, since) < moment.place and command.status() is None:
        time.sleep(0.002)
    time.sleep(moment.delay_s if delay_s is None else delay_s)
    workers = command.workers()
    place = VICTIMS.index(moment.victim) - 1
    if command.status() is None:
        os.kill(workers[place].pid if 0 <= place < len(workers) else command.pid, number)
    return command.ended()


def kill_at(warm: Warm, arguments: list[object], run: Path, moment: Moment) -> None:
    """Starts a command and kills one of its processes at a moment; where it ends before, it is killed earlier."""
    for attempt in range(5):
        command, since = warm.start(*arguments), len(events_of(run))
        if hit(command, run, moment, since, signal.SIGKILL, moment.delay_s / 2**attempt) != 0:
            return
        arguments = ["resume", run]
    raise AssertionError(f"nothing could be killed at {PLACES[moment.place]}")


def check_same(run: Path, whole: Path, rtol: float = 0.0) -> None:
    """Checks that a disturbed run ended as an undisturbed one: its losses, its tensors, its scores, its ledger."""
    for stage in STAGES:
        found, expected = (torch.tensor(losses(one, stage), dtype=torch.float64) for one in (run, whole))
        torch.testing.assert_close(found, expected, rtol=rtol, atol=0, msg=lambda text, s=stage: f"{s}: {text}")
        here, there = (read(one / "stages" / stage / "final").tensors for one in (run, whole))
        assert here.keys() == there.keys()
        if rtol == 0:
            assert [name for name in here if not torch.equal(here[name], there[name])] == [], stage
    if rtol == 0 and (whole / SCORES).exists():
        assert scores(run) == scores(whole)
    check_nothing_repeated(run)
    hidden = {path.name for path in run.rglob(".*")} - {".lock"}
    assert hidden == set(), "drafts are left behind"


def check_nothing_repeated(run: Path) -> None:
    """Checks that no stage was begun once it was done, and that each was done once."""
    done: list[str] = []
    for event in events_of(run):
        if event["event"] in ("stage_started", "stage_done"):
            assert event["stage"] not in done, event
        if event["event"] == "stage_done":
            done.append(event["stage"])
    assert done == list(STAGES)


def scores(run: Path) -> list[dict]:
    """Returns an evaluation's rows without what says how long they took."""
    rows = json.loads((run / SCORES).read_text())
    return [{key: value for key, value in row.items() if key not in ("seconds", "reused")} for row in rows]


def runs_of(project: Path) -> Path:
    return Path(yaml.safe_load(project.read_text())["runs"])
