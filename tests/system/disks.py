"""Small disks that fill, and disks that break, for a test to put a run on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096
OPTIONS = "loop,errors=remount-ro"


def missing(*programs: str) -> str:
    """Returns why no disk can be mounted here; empty if one can."""
    if os.geteuid() != 0:
        return "mounting a disk needs root"
    lacking = [name for name in ("mount", "umount", *programs) if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"this machine mounts no disk: {tried.stderr.strip()}"


class SmallDisk:
    """A disk of some megabytes in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leaves so many bytes of room and no more."""
        with self._ballast.open("ab") as file:
            while (room := shutil.disk_usage(self.path).free - leave) > 0:
                with contextlib.suppress(OSError):  # whoever else writes may have been quicker
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)

    def make_room(self) -> None:
        """Takes away what fills it."""
        self._ballast.unlink()


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Inside, there is a small disk at `path`."""
    with _mounted(path, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"):
        yield SmallDisk(path)


class BreakingDisk:
    """A disk that the system makes read-only when it meets an error, as it does with those that wear out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        asked = ["findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", path]
        self._device = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())

    def break_down(self) -> None:
        """Lets the system find an error."""
        (Path("/sys/fs/ext4") / self._device.name / "trigger_fs_error").write_text("broken by a test")

    def repair(self) -> None:
        """Makes it writable again."""
        subprocess.run(["umount", self.path], check=True)
        subprocess.run(["e2fsck", "-fy", self.path.with_suffix(".image")], check=False, capture_output=True)
        subprocess.run(["mount", "-o", OPTIONS, self.path.with_suffix(".image"), self.path], check=True)


@contextlib.contextmanager
def breaking_disk(path: Path, megabytes: int) -> Iterator[BreakingDisk]:
    """Inside, there is a disk at `path` that can break."""
    image = path.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(megabytes * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with _mounted(path, "-o", OPTIONS, image):
        yield BreakingDisk(path)


@contextlib.contextmanager
def _mounted(path: Path, *arguments: str | Path) -> Iterator[None]:
    path.mkdir(parents=True)
    subprocess.run(["mount", *arguments, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
