"""One run folder, one run at a time: also when two launches on two nodes share its disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from mmmoe import env
from mmmoe.log import logger
from mmmoe.stages.status import USER_MISTAKE

LOCK_FILE = ".lock"
BEAT_S = 3.0
"""Seconds from one sign of life of a holder to the next."""
WATCH_S = 4 * BEAT_S
"""Seconds in which another node's holder has to give one. No two clocks are compared: only whether the file changes."""
SETTLE_S = 1.0
"""Seconds from writing one's name to looking whether it stands, on a disk that may be shared with other nodes."""
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs")
"""Kinds of disks that belong to one machine, whose kernel's lock is proof enough."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a disk says that knows no locks."""


class FolderLock:
    """Holds a run folder until it is closed, or its process ends.

    A kernel's lock (flock) is proof among processes of one machine. Network disks may keep such locks to each node, or
    know none; so the file also names its holder, who gives signs of life in it.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            ValueError: when another process holds it.
        """
        self._folder, self._path = folder, folder / LOCK_FILE
        self._file = self._path.open("a+b", buffering=0)
        self._own = {"host": env.host(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go."""
        if self._file.closed:
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):  # a disk that is read-only by now; the next holder finds this one dead
            if _is_same(self._read(), self._own):
                self._file.truncate(0)
        self._file.close()

    def _take(self) -> None:
        has_locks = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._read()) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            has_locks = False
        self._judge(self._read(), has_locks)
        self._write(0)
        if not has_locks or not _is_local(self._folder):
            # Another may have written at the same moment, and been given a lock, too: who wrote last has it.
            time.sleep(SETTLE_S)
            if not _is_same(found := self._read(), self._own):
                raise self._in_use(found)
        self._thread = threading.Thread(target=self._beat, name="folder lock", daemon=True)
        self._thread.start()

    def _judge(self, holder: dict[str, Any] | None, has_locks: bool) -> None:
        """Refuses a holder that lives, and tells of one that does not."""
        if holder is None:
            return
        if holder["machine"] == _machine():
            # Here the kernel's lock is proof: with it in hand, the holder is dead.
            is_alive = not has_locks and _born(holder["pid"]) == holder["born"]
        else:
            logger().info("looking for %.0f s whether %s still uses %s", WATCH_S, _name(holder), self._folder)
            is_alive = self._changes(holder)
        if is_alive:
            raise self._in_use(holder)
        logger().warning("%s ended without letting %s go; this run takes it over", _name(holder), self._folder)

    def _changes(self, before: dict[str, Any]) -> bool:
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(BEAT_S / 3)
            if self._read() != before:
                return True
        return False

    def _beat(self) -> None:
        beats = 0
        while not self._closing.wait(BEAT_S):
            beats += 1
            try:
                if (found := self._read()) is not None and not _is_same(found, self._own):
                    _end(str(self._in_use(found)))
                    return
                self._write(beats)
            except OSError as error:  # a full disk is told by those who have something to write
                logger().warning("no sign of life in %s: %s", self._path, error.strerror)

    def _write(self, beats: int) -> None:
        # As long as the one before, so that a reader never meets the end of another.
        text = json.dumps({**self._own, "beats": f"{beats:012d}"}).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Any] | None:
        """Returns what the file says of its holder; opened anew, since network disks look again only then."""
        try:
            holder = json.loads(self._path.read_bytes())
            return holder if {"host", "pid", "machine", "born"} <= holder.keys() else None
        except (ValueError, AttributeError):
            return None

    def _in_use(self, holder: dict[str, Any] | None) -> ValueError:
        who = f" ({_name(holder)})" if holder else ""
        return ValueError(f"{self._folder} is in use by another run{who}; wait for it or stop it first")


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}"


def _is_same(holder: dict[str, Any] | None, own: dict[str, Any]) -> bool:
    return holder is not None and all(holder[key] == value for key, value in own.items())


def _is_local(folder: Path) -> bool:
    """Says whether a folder's disk is known to be this machine's own."""
    here = folder.resolve()
    over = [disk for disk in psutil.disk_partitions(all=True) if here.is_relative_to(disk.mountpoint)]
    return bool(over) and max(over, key=lambda disk: len(disk.mountpoint)).fstype in LOCAL


def _end(reason: str) -> None:
    """Ends this process at once, before it writes what another run writes, too."""
    os.write(2, f"\nerror: {env.who()}: {reason}. This process stops: two runs began here at once\n".encode())
    os._exit(USER_MISTAKE)


def _machine() -> str:
    """Returns what tells a running machine from others, whatever its hosts are called."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else env.host()


def _born(pid: int) -> float | None:
    """Returns when a process of this machine began, None if there is none: numbers are given again."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError):
        return None
