"""The lock of a run folder: held on this node or another, let go, left by a dead process, on disks without locks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from mmmoe.stages import lock as module
from mmmoe.stages.lock import FolderLock

DEAD = {"host": "node-b", "pid": 4_000_000, "machine": "another boot", "born": 1.0, "beats": "000000000003"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "WATCH_S", 0.3)
    monkeypatch.setattr(module, "SETTLE_S", 0.2)


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(file, how):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", refuse)


def write(folder, holder):
    (folder / ".lock").write_text(json.dumps(holder))


def test_a_second_one_is_told_who_holds_it(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ValueError, match=f"in use by another run .process {os.getpid()} on "):
        FolderLock(tmp_path)


def test_what_was_let_go_is_taken_without_waiting(tmp_path, monkeypatch):
    FolderLock(tmp_path).close()
    monkeypatch.setattr(module, "WATCH_S", 1000)
    with FolderLock(tmp_path):
        pass


def test_a_dead_process_of_this_machine_is_told_and_not_waited_for(tmp_path, caplog, monkeypatch):
    script = f"import os, pathlib; from mmmoe.stages.lock import FolderLock as L; L(pathlib.Path({str(tmp_path)!r}))"
    script += "; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    monkeypatch.setattr(module, "WATCH_S", 1000)
    monkeypatch.setattr(module.logger(), "propagate", True)
    with FolderLock(tmp_path):
        assert "ended without letting" in caplog.text


def test_another_node_that_gives_signs_of_life_keeps_it(tmp_path):
    # As on a disk that keeps each node's locks to itself: the kernel hands this one out.
    write(tmp_path, DEAD)
    ended = threading.Event()

    def beat():
        beats = 3
        while not ended.wait(0.05):
            beats += 1
            write(tmp_path, {**DEAD, "beats": f"{beats:012d}"})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"in use by another run .process 4000000 on node-b"):
            FolderLock(tmp_path)
    finally:
        ended.set()
        thread.join()


def test_another_node_that_gives_none_loses_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module.logger(), "propagate", True)
    write(tmp_path, DEAD)
    with FolderLock(tmp_path):
        assert "process 4000000 on node-b ended without letting" in caplog.text
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_holder_gives_signs_of_life_until_it_lets_go(tmp_path):
    def beats():
        return json.loads((tmp_path / ".lock").read_text())["beats"]

    with FolderLock(tmp_path):
        first = beats()
        time.sleep(0.3)
        assert beats() > first
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.usefixtures("without_locks")
def test_a_disk_without_locks_is_locked_by_name(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ValueError, match="in use"):
        FolderLock(tmp_path)
    write(tmp_path, {**DEAD, "machine": module._machine()})  # no such process here
    with FolderLock(tmp_path):
        pass


def test_a_torn_file_holds_nobody_back(tmp_path):
    for torn in ('{"host": "a", "pi', "", "[]", "7"):
        (tmp_path / ".lock").write_text(torn)
        FolderLock(tmp_path).close()


@pytest.fixture
def with_locks_of_its_own(monkeypatch):
    """As on a disk that keeps each node's locks to itself: everybody is given one, and names nobody's machine."""
    monkeypatch.setattr(module.fcntl, "flock", lambda file, how: None)
    monkeypatch.setattr(module.psutil, "disk_partitions", lambda all: [Disk("/", "nfs4")])


class Disk:
    def __init__(self, mountpoint, fstype):
        self.mountpoint, self.fstype = mountpoint, fstype


@pytest.mark.usefixtures("with_locks_of_its_own")
def test_of_two_that_begin_at_once_on_two_nodes_one_gives_way(tmp_path, monkeypatch):
    machine, meet = threading.local(), threading.Barrier(2)
    monkeypatch.setattr(module, "_machine", lambda: machine.name)
    locks, refused = [], []

    def begin(name):
        machine.name = name
        read = FolderLock._read

        def read_together(self):  # both have looked before one of them writes
            found = read(self)
            if hasattr(machine, "name") and not hasattr(machine, "looked"):
                machine.looked = True
                meet.wait()
            return found

        monkeypatch.setattr(FolderLock, "_read", read_together) if name == "a" else None
        meet.wait()
        try:
            locks.append(FolderLock(tmp_path))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(locks) == len(refused) == 1
    assert "in use by another run" in refused[0]
    locks[0].close()


def test_a_holder_that_finds_another_name_ends_and_leaves_it(tmp_path, monkeypatch):
    reasons = []
    monkeypatch.setattr(module, "_end", reasons.append)
    with FolderLock(tmp_path) as lock:
        write(tmp_path, DEAD)
        lock._thread.join(5)
        assert "in use by another run (process 4000000 on node-b)" in reasons[0]
    assert json.loads((tmp_path / ".lock").read_text()) == DEAD


def test_a_disk_of_this_machine_costs_no_wait_and_another_does(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    disks = [Disk("/", "nfs"), Disk(str(tmp_path), "ext4"), Disk(f"{tmp_path}/shared", "lustre")]
    monkeypatch.setattr(module.psutil, "disk_partitions", lambda all: disks)
    (tmp_path / "shared").mkdir()
    FolderLock(tmp_path).close()
    assert slept == []
    FolderLock(tmp_path / "shared").close()
    assert slept == [module.SETTLE_S]
