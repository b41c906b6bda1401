"""Checkpoints survive kills, damage and full disks."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from engine_toy import toy_engine, toy_training

from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import BackgroundWriter, CheckpointState, DiskFullError
from mmmoe.engine.keeper import CheckpointKeeper
from mmmoe.engine.spec import CheckpointSpec, EngineSpec
from mmmoe.engine.step_folders import all_steps, prune

TENSORS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([0.5, -1.0])}
MOMENTS = {f"{kind}.{name}": tensor * 2 for kind in ("exp_avg", "exp_avg_sq") for name, tensor in TENSORS.items()}


def put(folder: Path, step: int) -> Path:
    state = CheckpointState(step, {"name": "align"}, parent="abc", seeds={"data": 4}, extra={"seconds": 1.5})
    return checkpoint.write(folder, state, TENSORS, MOMENTS)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, 12)
    assert path.name == "step_000012"
    held = checkpoint.read(path)
    assert held.state == CheckpointState(12, {"name": "align"}, "abc", {"data": 4}, {"seconds": 1.5})
    for expected, found in ((TENSORS, held.tensors), (MOMENTS, held.moments)):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert held.digest == checkpoint.digest(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step_000012"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["state.json"]["bytes"] == (path / "state.json").stat().st_size


def test_damage_is_found_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = put(tmp_path, 1)
    short, flipped, bare = put(tmp_path, 2), put(tmp_path, 3), put(tmp_path, 4)
    (short / "optimizer.safetensors").write_bytes((short / "optimizer.safetensors").read_bytes()[:-4])
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "model.safetensors").write_bytes(content)
    (bare / "manifest.json").unlink()
    assert "bytes, not" in checkpoint.verify(short)[0]
    assert "another hash" in checkpoint.verify(flipped)[0]
    assert checkpoint.verify(bare) == ["manifest.json is missing"]
    assert checkpoint.latest_valid(tmp_path) == good
    with pytest.raises(ValueError, match=r"cannot be used: model\.safetensors has another hash"):
        checkpoint.read(flipped)
    assert checkpoint.latest_valid(tmp_path / "absent") is None


def test_a_killed_write_leaves_nothing_that_counts(tmp_path: Path) -> None:
    put(tmp_path, 1)
    shutil.copytree(tmp_path / "step_000001", tmp_path / ".writing_step_000002")
    assert checkpoint.latest_valid(tmp_path) == tmp_path / "step_000001"
    put(tmp_path, 2)
    put(tmp_path, 2)
    assert [path.name for path in all_steps(tmp_path)] == ["step_000001", "step_000002"]
    (tmp_path / ".writing_step_000003").mkdir()
    prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_flush", refuse)
        with pytest.raises(DiskFullError, match=r"no room to write checkpoint .*step_000002"):
            put(tmp_path, 2)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda folder: usage(100, 90, 10))
        with pytest.raises(DiskFullError, match="free space there"):
            put(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert checkpoint.verify(tmp_path / "step_000001") == []


def test_background_writer_works_beside_and_reports_failures() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), []
    writer.submit(lambda: (gate.wait(5), done.append(1)))
    assert done == []
    gate.set()
    writer.wait()
    assert done == [1]

    def fail() -> None:
        raise DiskFullError("full")

    writer.submit(fail)
    with pytest.raises(DiskFullError):
        writer.wait()
    writer.wait()


def test_keeper_saves_prunes_and_resumes(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path, CheckpointSpec(every=2, keep=2))
    assert [step for step in range(1, 7) if keeper.is_due(step)] == [2, 4, 6]
    engine = toy_engine(EngineSpec(kind="local"), toy_training())
    assert keeper.resume(engine) is None
    for step in (2, 4, 6):
        keeper.save(engine, CheckpointState(step))
    keeper.wait()
    assert [path.name for path in all_steps(tmp_path)] == ["step_000004", "step_000006"]
    held = keeper.resume(engine)
    assert held is not None
    assert held.state.step == 6


def test_mismatch_is_explained() -> None:
    assert checkpoint.explain_mismatch({"a": (2,)}, {"a": torch.zeros(2)}) is None
    text = checkpoint.explain_mismatch({"a": (2,), "b": (3,)}, {"b": torch.zeros(4), "c": torch.zeros(1)})
    assert text == "1 missing: a; 1 unused: c; 1 of another shape: b (model (3,), checkpoint (4,))"


def test_resume_puts_damaged_newer_checkpoints_aside_so_that_pruning_keeps_the_sound_one(tmp_path):
    class Held:
        def load(self, tensors, moments, updates):
            self.updates = updates

    for step in (100, 200, 300):
        checkpoint.write(tmp_path, CheckpointState(step), {"w": torch.ones(3)}, {})
    for step in (200, 300):
        (tmp_path / f"step_{step:06d}" / "model.safetensors").write_bytes(b"damaged")
    held = Held()
    CheckpointKeeper(tmp_path, CheckpointSpec(keep=2)).resume(held)
    assert held.updates == 100
    checkpoint.write(tmp_path, CheckpointState(150), {"w": torch.ones(3)}, {})
    prune(tmp_path, 2)
    assert [path.name for path in all_steps(tmp_path)] == ["step_000100", "step_000150"]


def test_where_every_checkpoint_is_damaged_new_ones_are_kept(tmp_path):
    for step in (40, 60):
        checkpoint.write(tmp_path, CheckpointState(step), {"w": torch.ones(3)}, {})
        (tmp_path / f"step_{step:06d}" / "model.safetensors").write_bytes(b"damaged")
    assert CheckpointKeeper(tmp_path, CheckpointSpec(keep=2)).resume(None) is None
    checkpoint.write(tmp_path, CheckpointState(20), {"w": torch.ones(3)}, {})
    prune(tmp_path, 2)
    assert [path.name for path in all_steps(tmp_path)] == ["step_000020"]
    assert sorted(path.name for path in tmp_path.glob("damaged_*")) == ["damaged_step_000040", "damaged_step_000060"]
