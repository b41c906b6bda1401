"""A disk that fills, or breaks, under a run: it ends with a status of its own, and goes on once there is room."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from disks import PAGE, breaking_disk, missing, small_disk
from timeline import PLACES, Moment, check_same, events_of, hit, overrides, wait_for

MISTAKE, NO_ROOM, STOPPED = 2, 4, 75

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
LONG = [
    "engine.kind=local",
    "engine.processes=1",
    "stages.mole.training.steps=60",
    "stages.mole.training.checkpoint.every=5",
    "evaluation=null",
]
"""A stage with time for a disk to fill in."""
INTACT = "what was saved before is intact"


@pytest.fixture(scope="module")
def whole(project, warm, tmp_path_factory):
    """The run whose disk has room."""
    return roomy(project, warm, tmp_path_factory.mktemp("roomy"))


def roomy(project, warm, folder: Path, *more: str) -> Path:
    """Returns a finished run that had room."""
    warm.start("run", project, *overrides(folder, *LONG, *more)).finish()
    return folder / "runs/small"


def settings(tmp_path: Path, disk: Path, *more: str) -> list[str]:
    """Returns a run's settings whose folder is on the disk, and whose cache is not."""
    return [*overrides(tmp_path / "own", *LONG), f"runs={disk / 'runs'}", *more]


def pad_ledger(run: Path, room: int) -> None:
    """Writes a line that nobody knows, so that the page at hand has so much room and the next line needs another."""
    line = json.dumps({"event": "padding", "text": ""}) + "\n"
    with (run / "ledger.jsonl").open("a") as file:
        blank = -(file.tell() + len(line) + room) % PAGE
        file.write(line.replace('""', f'"{" " * blank}"'))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_disk_that_fills_before_a_checkpoint_costs_no_step_before_it(project, warm, tmp_path, whole, processes):
    shared = [] if processes == 1 else [f"engine.processes={processes}", "engine.kind=deepspeed"]
    whole = roomy(project, warm, tmp_path / "roomy", *shared) if shared else whole
    with small_disk(tmp_path / "disk", 16) as disk:
        run = disk.path / "runs/small"
        command = warm.start("run", project, *settings(tmp_path, disk.path, *shared))
        wait_for(command, run, ("mole", 8))  # some steps after the checkpoint, which is written beside them
        disk.fill(leave=64 * PAGE)  # lines of metrics fit in, no checkpoint does
        said = command.finish(NO_ROOM)
        assert "no room to write checkpoint" in " ".join(said.split())
        disk.make_room()
        warm.start("resume", run).finish()
        last = [event for event in events_of(run) if event["event"] == "stage_started"][-1]
        assert last["stage"] == "mole"
        assert last["step"] in range(5, 60, 5)
        check_same(run, whole)


@pytest.mark.slow
def test_disk_that_fills_under_the_metrics_ends_the_run_with_its_status(project, warm, tmp_path, whole):
    with small_disk(tmp_path / "disk", 16) as disk:
        run = disk.path / "runs/small"
        command = warm.start(
            "run", project, *settings(tmp_path, disk.path, "stages.mole.training.checkpoint.every=null")
        )
        wait_for(command, run, ("mole", 3))
        disk.fill()
        said = command.finish(NO_ROOM)
        assert INTACT in " ".join(said.split())
        disk.make_room()
        warm.start("resume", run).finish()
        check_same(run, whole)


@pytest.mark.parametrize(
    ("pages", "room"),
    [
        pytest.param(0, 0, marks=pytest.mark.long, id="lock"),
        pytest.param(1, 0, marks=pytest.mark.slow, id="resumed"),
        pytest.param(1, 100, marks=pytest.mark.long, id="metrics"),
        pytest.param(2, 100, marks=pytest.mark.long, id="stage_started"),
    ],
)
def test_disk_that_is_full_at_any_of_the_first_writes_of_a_resume_loses_nothing_before_it(
    project, warm, tmp_path, whole, pages, room
):
    with small_disk(tmp_path / "disk", 16) as disk:
        run = disk.path / "runs/small"
        command = warm.start("run", project, *settings(tmp_path, disk.path))
        assert hit(command, run, Moment(PLACES.index(("mole", 2)), 0.0, "launcher"), 0, signal.SIGTERM) == STOPPED
        before = events_of(run)
        pad_ledger(run, room)
        disk.fill(leave=pages * PAGE)
        said = warm.start("resume", run).finish(NO_ROOM)
        assert INTACT in " ".join(said.split())
        kept = [event for event in events_of(run) if event["event"] != "padding"]
        assert kept[: len(before)] == before
        # Where a page has room for a line more, the launcher notes the end as well.
        written = [event["event"] for event in kept[len(before) :] if event["event"] != "ended"]
        assert written == ["resumed", "stage_started"][: len(written)]
        disk.make_room()
        warm.start("resume", run).finish()
        check_same(run, whole)


@pytest.mark.parametrize(
    ("leave", "status", "told"),
    [
        pytest.param(2 * PAGE, MISTAKE, "make room", marks=pytest.mark.long, id="seen before"),
        pytest.param(500_000, NO_ROOM, INTACT, marks=pytest.mark.slow, id="met while writing"),
    ],
)
def test_cache_that_finds_no_room_ends_the_run_with_what_to_do(project, warm, tmp_path, whole, leave, status, told):
    with small_disk(tmp_path / "disk", 16) as disk:
        disk.fill(leave)
        own = tmp_path / "own"
        cache = [f"cache={disk.path / 'cache'}", "stages.language.reuse=false"]
        said = warm.start("run", project, *overrides(own, *LONG), *cache).finish(status)
        assert told in " ".join(said.split())
        disk.make_room()
        warm.start("resume", own / "runs/small").finish()
        check_same(own / "runs/small", whole)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("mkfs.ext4", "e2fsck", "findmnt")), reason=missing("mkfs.ext4", "e2fsck", "findmnt"))
def test_disk_that_turns_read_only_in_mid_run_ends_it_with_its_status(project, warm, tmp_path, whole):
    with breaking_disk(tmp_path / "disk", 32) as disk:
        run = disk.path / "runs/small"
        command = warm.start("run", project, *settings(tmp_path, disk.path))
        wait_for(command, run, ("mole", 8))
        disk.break_down()
        said = command.finish(NO_ROOM)
        assert INTACT in " ".join(said.split())
        disk.repair()
        warm.start("resume", run).finish()
        check_same(run, whole)
