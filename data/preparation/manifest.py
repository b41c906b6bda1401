"""The manifest: what was made from what, and whether it still lies there as it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Returns a file's hash."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """Returns one sha256 over the names and bytes of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()


def code_digest(script: Path, rooms: Sequence[str]) -> str:
    """Returns one sha256 over a script and the folders of modules beside it that it runs."""
    code = hashlib.sha256()
    for path in [script, *(path for room in rooms for path in sorted((script.parent / room).glob("*.py")))]:
        code.update(path.name.encode() + b"\0" + path.read_bytes())
    return code.hexdigest()


def wheel_versions(wheels: Iterable[str], cure: str) -> dict[str, str]:
    """Returns the versions of installed packages.

    Raises:
        ValueError: One is not installed; `cure` says what to do.
    """
    found = {}
    for wheel in wheels:
        try:
            found[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"this data needs the package {wheel}, which is not installed: {cure}") from None
    return found


@dataclass(frozen=True)
class Manifest:
    """The manifest of one prepared folder."""

    folder: Path
    parts: tuple[str, ...]
    """Folders that a run reads: they are hashed."""
    versions: Mapping[str, str]
    """What the result depends on: packages at their versions, and the hash of the code."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / "manifest.json"

    def digests(self) -> dict[str, str]:
        """Returns the digest of every part."""
        return {part: tree_digest(self.folder / part) for part in self.parts}

    def is_current(self) -> bool:
        """Tells whether the data is there, unharmed, and made by this code from these versions."""
        if not self.path.is_file():
            return False
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except json.JSONDecodeError:
            return False
        return found.get("versions") == dict(self.versions) and found.get("sha256") == self.digests()

    def write(self, counts: Mapping[str, Any], seconds: float) -> None:
        """Writes the manifest last of all, so that a preparation that was stopped is begun again."""
        content = {
            "versions": dict(self.versions),
            "counts": dict(counts),
            "sha256": self.digests(),
            "seconds": round(seconds, 1),
        }
        draft = self.path.with_suffix(".json.part")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.rename(self.path)
