"""What the demo's manifest holds: the versions it depends on and the parts that a run reads."""

from __future__ import annotations

from pathlib import Path

from preparation.manifest import Manifest, code_digest, wheel_versions

HASHED = ("shards", "tokenizer", "benchmarks", "validation")
WHEELS = ("vega-datasets", "resvg_py", "matplotlib", "pillow", "tokenizers")
CODE = ("demo", "preparation")


def manifest_of(folder: Path, script: Path) -> Manifest:
    """Returns the manifest of the demo's data as this code and these packages would make it."""
    from demo.packages import ALL

    versions = {package.name: package.version for package in ALL}
    versions |= wheel_versions(WHEELS, "pip install 'mmmoe[demo]'")
    return Manifest(folder, HASHED, {**versions, "code": code_digest(script, CODE)})
