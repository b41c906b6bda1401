"""A checkpoint of a real run, damaged at every byte of what describes it and many of what it holds, is never taken."""

from __future__ import annotations

import logging
import random
import shutil
import signal
import zlib
from pathlib import Path

import pytest
from timeline import PLACES, Moment, check_same, events_of, hit, overrides

from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import MANIFEST, MODEL, OPTIMIZER, STATE, latest_valid
from mmmoe.engine.step_folders import all_steps

SETTINGS = ["engine.kind=local", "engine.processes=1", "evaluation=null"]
STOPPED = 75

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stopped(project, warm, tmp_path_factory) -> Path:
    """A run that was asked to stop in its last stage, where two checkpoints stand."""
    folder = tmp_path_factory.mktemp("stopped")
    run = folder / "runs/small"
    command = warm.start("run", project, *overrides(folder, *SETTINGS))
    assert hit(command, run, Moment(PLACES.index(("mole", 5)), 0.0, "launcher"), 0, signal.SIGTERM) == STOPPED
    return run


@pytest.fixture
def steps(stopped, tmp_path) -> tuple[Path, Path]:
    """The older and the newer of the two, in a copy."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "stages/mole/checkpoints", folder)
    older, newer = all_steps(folder)
    return older, newer


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What is said of damaged checkpoints."""
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("mmmoe"), "warning", lambda text, *values: said.append(text % values))
    return said


def check_passed_over(steps: tuple[Path, Path], warnings: list[str], file: Path, where: str) -> None:
    """Checks that the damage is found, and, for a share of the places to save time, what follows from it."""
    older, newer = steps
    assert checkpoint.verify(newer), where
    if zlib.crc32(where.encode()) % 10:
        return
    warnings.clear()
    assert latest_valid(newer.parent) == older, where
    assert len(warnings) == 1, where
    assert str(newer) in warnings[0], where
    # A damaged manifest may name a file or a version that never was.
    assert file.name in warnings[0] or file.name == MANIFEST, where


def damaged_places(file: Path) -> list[int]:
    """Returns every byte of a small file; of tensors the whole header and a random spread."""
    size = file.stat().st_size
    if file.suffix == ".json":
        return list(range(size))
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    return [*range(0, header, 7), *sorted(random.Random(3).sample(range(header, size), 150)), size - 1]


@pytest.mark.parametrize("name", [MANIFEST, STATE, MODEL, OPTIMIZER])
def test_every_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(steps, warnings, name):
    file = steps[1] / name
    sound = file.read_bytes()
    places = damaged_places(file)
    assert len(places) > 150
    with file.open("r+b") as stream:
        for place in places:
            # All bits at once, and one alone: in a manifest's digits that makes another digit.
            for bits in (0xFF, 1 << place % 8) if name == MANIFEST else (1 << place % 8,):
                stream.seek(place)
                stream.write(bytes([sound[place] ^ bits]))
                stream.flush()
                check_passed_over(steps, warnings, file, f"{name} byte {place} ^ {bits:#x}")
            stream.seek(place)
            stream.write(sound[place : place + 1])
    assert latest_valid(steps[1].parent) == steps[1]


@pytest.mark.parametrize("name", [MANIFEST, STATE, MODEL, OPTIMIZER])
def test_file_cut_at_any_length_or_gone_is_noticed_and_the_checkpoint_before_is_used(steps, warnings, name):
    file = steps[1] / name
    sound = file.read_bytes()
    lengths = range(len(sound)) if name == MANIFEST else sorted({0, *range(0, len(sound), len(sound) // 60)})
    for length in lengths:
        file.write_bytes(sound[:length])
        check_passed_over(steps, warnings, file, f"{name} cut at {length}")
    file.unlink()
    check_passed_over(steps, warnings, file, f"{name} is gone")


def test_nothing_is_taken_where_both_are_damaged(steps, warnings):
    for step in steps:
        (step / MODEL).write_bytes(b"")
    assert latest_valid(steps[0].parent) is None
    assert len(warnings) == 2


def test_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(project, warm, stopped, tmp_path):
    whole, run = tmp_path / "whole/runs/small", stopped
    warm.start("run", project, *overrides(tmp_path / "whole", *SETTINGS)).finish()
    older, newer = all_steps(run / "stages/mole/checkpoints")
    with (newer / OPTIMIZER).open("r+b") as stream:
        stream.seek(-9, 2)
        stream.write(b"\xff")
    said = " ".join(warm.start("resume", run).finish().split())
    assert f"goes on after step {int(older.name[5:])}" in said
    assert "is damaged and is passed over" in said
    lost = int(newer.name[5:]) - int(older.name[5:])
    assert f"stage mole: {lost} steps are done again, from step {int(older.name[5:])}" in said
    assert [event["again"] for event in events_of(run) if event.get("again")] == [lost]
    check_same(run, whole)
