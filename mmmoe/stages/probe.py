"""What one node has, told to the doctor of another; and the node's part in the doctor's collective."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as torch_dist

from mmmoe import dist, env
from mmmoe.paths import PACKAGE

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "webdataset")
"""Packages whose versions must be alike on all nodes: they shape numbers, files or messages."""


@dataclass(frozen=True)
class NodeReport:
    """What a node has."""

    host: str
    python: str
    packages: dict[str, str]
    source: str
    """Hash of the project's own source."""
    memory_gb: float
    disk_gb: float
    """Free, where the command was given."""
    gpus: int
    processors: int
    token: str
    """What the doctor's file holds, as seen from here."""

    def as_json(self) -> str:
        """Returns one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NodeReport:
        """Reads the last line of what a node said; libraries may have spoken before.

        Raises:
            ValueError: It is no report.
        """
        try:
            return cls(**json.loads(text.strip().splitlines()[-1]))
        except (IndexError, TypeError, json.JSONDecodeError):
            raise ValueError(f"no report, but {text.strip()[-200:]!r}") from None


def look(token: Path) -> NodeReport:
    """Returns what this node has.

    Args:
        token: A file that the doctor made on its own node; on a shared disk it is here, too.
    """
    return NodeReport(
        host=env.host(),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        source=_source(),
        memory_gb=psutil.virtual_memory().available / 2**30,
        disk_gb=shutil.disk_usage(Path.cwd()).free / 2**30,
        gpus=torch.cuda.device_count(),
        processors=os.cpu_count() or 1,
        token=token.read_text(encoding="utf-8") if token.is_file() else "",
    )


def meet(deadline_s: float) -> str:
    """Adds up a number with the other nodes; returns how that went, in words.

    Raises:
        ValueError: The others were not met in time, or the sum is wrong.
    """
    rank, world = env.rank(), env.world_size()
    began = time.monotonic()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.start(deadline_s)
        total = torch.full((1024,), float(rank + 1), device=dist.device())
        work = torch_dist.all_reduce(total, async_op=True)
        if work is None or not work.wait(timedelta(seconds=deadline_s)):
            raise ValueError(f"no answer within {deadline_s:.0f} s")
        found, expected = float(total[0]), world * (world + 1) / 2
    except (RuntimeError, torch_dist.DistError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no collective with the others, who meet at {env.master_address()}: {reason}") from None
    if found != expected:
        raise ValueError(f"all_reduce gave {found}, not {expected}")
    dist.stop()
    return f"{backend}: all_reduce with {world} processes in {time.monotonic() - began:.1f} s"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _source() -> str:
    """Returns a hash of the project's files, so that two states of one version differ."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()
