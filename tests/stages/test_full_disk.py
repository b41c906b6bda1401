"""A disk that is full, or cannot be written, where a run writes: a status of its own, and nothing before it is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from mmmoe.cli_errors import guarded
from mmmoe.data.feature_part import Encoded, write_part
from mmmoe.data.quarantine import BadSample, Quarantine
from mmmoe.engine.memory import MemoryFullError
from mmmoe.engine.metrics import MetricsFile
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.status import FINAL, LOST_PEER, NO_MEMORY, NO_ROOM, USER_MISTAKE

FULL = Path("/dev/full")
"""A device that has no room for anything."""


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room, then resume"),
        (errno.EDQUOT, "within the quota"),
        (errno.EIO, "have the disk looked at"),
        (errno.EROFS, "mounted so that it can be written"),
        (errno.EACCES, "give this user the right"),
        (errno.EPERM, "give this user the right"),
    ],
)
def test_a_place_that_cannot_be_written_has_a_status_and_a_cure(number, cure, capfd):
    assert guarded(raising(OSError(number, os.strerror(number), "runs/x/ledger.jsonl"))) == NO_ROOM
    said = " ".join(capfd.readouterr().err.split())
    assert f"runs/x/ledger.jsonl: {os.strerror(number)}; what was saved before is intact" in said
    assert cure in said


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (OSError(errno.ESTALE, "Stale file handle", "runs/x/ledger.jsonl"), "have the disk or its server looked at"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "look at the network"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "look at the network"),
        (OSError(errno.ECONNRESET, "Connection reset by peer"), "look at the network"),
        (TimeoutError("timed out"), "timed out; what was saved before is intact: look at the network"),
    ],
)
def test_a_device_or_network_that_fails_is_no_mistake_and_may_be_tried_again(error, cure, capfd):
    assert guarded(raising(error)) == LOST_PEER
    assert LOST_PEER not in FINAL
    said = " ".join(capfd.readouterr().err.split())
    assert "what was saved before is intact" in said
    assert cure in said


def test_a_missing_file_is_a_mistake_as_before():
    assert guarded(raising(FileNotFoundError(errno.ENOENT, "No such file", "x"))) == USER_MISTAKE


@pytest.mark.parametrize(
    "error",
    [
        MemoryFullError("out of memory in stage mole, step 3"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
    ids=["explained", "gpu", "host", "python"],
)
def test_no_memory_has_a_status(error, capfd):
    assert guarded(raising(error)) == NO_MEMORY
    assert "out of memory" in capfd.readouterr().err


def test_another_error_of_torch_is_none_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(raising(RuntimeError("shapes differ")))


def test_a_message_that_finds_no_room_itself_changes_no_status(monkeypatch):
    monkeypatch.setattr("mmmoe.cli.console.print", raising_always(OSError(errno.ENOSPC, "No space left on device")))
    assert guarded(raising(OSError(errno.ENOSPC, "No space left on device"))) == NO_ROOM


def raising_always(error):
    def call(*_, **__):
        raise error

    return call


def moved_to_full(path):
    """Puts a full device where a file is, and returns where the file is now."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to(FULL)
    return aside


def back(path, aside):
    path.unlink()
    aside.rename(path)


def test_metrics_find_no_room_and_go_on_when_there_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"step": 1})
    metrics.close()
    aside = moved_to_full(path)
    metrics = MetricsFile(path)
    with pytest.raises(OSError, match="No space left") as told:
        metrics.append({"step": 2})
    assert told.value.errno == errno.ENOSPC
    back(path, aside)
    # What a full disk keeps of a line.
    path.write_bytes(path.read_bytes() + b'{"step":2,"lo')
    again = MetricsFile(path)
    again.truncate_after(1)
    again.append({"step": 2})
    assert again.read() == [{"step": 1}, {"step": 2}]


def test_a_ledger_that_finds_no_room_keeps_what_it_had(tmp_path):
    (tmp_path / "spec.yaml").write_text("")
    folder = RunFolder(tmp_path)
    folder.record("created")
    aside = moved_to_full(tmp_path / "ledger.jsonl")
    with pytest.raises(OSError, match="No space left"):
        folder.record("stage_done", stage="align")
    back(tmp_path / "ledger.jsonl", aside)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"event": "stage_d')
    folder.record("stage_done", stage="align")
    assert [event["event"] for event in folder.events()] == ["created", "stage_done"]
    assert list(folder.done()) == ["align"]


def test_a_quarantine_that_finds_no_room_loses_no_sample_that_it_wrote_before_or_after(tmp_path):
    def bad(key):
        return BadSample("shapes", "0.tar", key, "no picture")

    path = tmp_path / "quarantine.0.jsonl"
    quarantine = Quarantine(tmp_path, 9)
    quarantine.add(bad("a"))
    aside = moved_to_full(path)
    with pytest.raises(OSError, match="No space left"):
        quarantine.add(bad("b"))
    back(path, aside)
    with path.open("a") as file:
        file.write(json.dumps({"source": "shapes"})[:9])
    Quarantine(tmp_path, 9).add(bad("b"))
    assert [one.key for one in Quarantine(tmp_path, 9).read()] == ["a", "b"]


def test_a_part_of_features_that_finds_no_room_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "0.npy"
    monkeypatch.setattr("mmmoe.data.rowfile.os.getpid", lambda: 7)
    (tmp_path / ".0.npy.7.tmp").symlink_to(FULL)
    with pytest.raises(OSError, match="No space left"):
        write_part(path, [Encoded(torch.zeros(1, 2, 3), (1,), {})], 1)
    assert list(tmp_path.iterdir()) == []
