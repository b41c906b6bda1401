"""The manifest: what was made from what, and whether it still lies there as it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

HASHED = ("shards", "tokenizer", "benchmarks", "validation")
WHEELS = ("vega-datasets", "resvg_py", "matplotlib", "pillow", "tokenizers")


def versions(script: Path) -> dict[str, str]:
    """Returns what the result depends on: packages at their versions, and the hash of this code."""
    from demo.packages import ALL

    found = {package.name: package.version for package in ALL}
    for wheel in WHEELS:
        try:
            found[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"the demo's data needs the package {wheel}: pip install 'mmmoe[demo]'") from None
    code = hashlib.sha256()
    for path in [script, *sorted((script.parent / "demo").glob("*.py"))]:
        code.update(path.name.encode() + b"\0" + path.read_bytes())
    return {**found, "code": code.hexdigest()}


def tree_digest(folder: Path) -> str:
    """Returns one sha256 over the names and bytes of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Returns the digest of every part that a run reads."""
    return {part: tree_digest(folder / part) for part in HASHED}


def is_current(folder: Path, script: Path) -> bool:
    """Tells whether the data is there, unharmed, and made by this code from these versions."""
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError:
        return False
    return manifest.get("versions") == versions(script) and manifest.get("sha256") == digests(folder)


def write_manifest(folder: Path, script: Path, counts: dict[str, Any], seconds: float) -> None:
    """Writes the manifest last of all, so that a preparation that was stopped is begun again."""
    manifest = {
        "versions": versions(script),
        "counts": counts,
        "sha256": digests(folder),
        "seconds": round(seconds, 1),
    }
    draft = folder / "manifest.json.part"
    draft.write_text(json.dumps(manifest, indent=2) + "\n")
    draft.rename(folder / "manifest.json")
