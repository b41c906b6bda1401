"""A run under torchrun: on this node, and on others where the same command is given."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmmoe import dist
from mmmoe.stages.children import Child, wait_for
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.options import parse_options
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import STOPPED


@dataclass(frozen=True)
class Torchrun:
    """torchrun, by its own options."""

    options: dict[str, str | None]

    @classmethod
    def of(cls, words: list[str]) -> Torchrun:
        """Reads `name=value`, the names being torchrun's long options.

        Raises:
            ValueError: A word is no option.
        """
        return cls(parse_options("--torchrun", words, "nproc-per-node=8"))

    def world(self, spec: RunSpec) -> int | None:
        """Returns the number of processes, None where torchrun decides it."""
        nodes, each = (self.options.get(name) or "1" for name in ("nnodes", "nproc-per-node"))
        return int(nodes) * int(each) if nodes.isdecimal() and each.isdecimal() else None

    def command(self, spec: RunSpec, folder: Path, overrides: list[str]) -> list[str]:
        """Returns the command: what torchrun starts goes on with the run, also when torchrun starts it again."""
        own = {"max-restarts": str(spec.engine.restarts)} if spec.engine.restarts else {}
        given = [f"--{name}" + ("" if v is None else f"={v}") for name, v in {**own, **self.options}.items()]
        return [
            *(sys.executable, "-m", "torch.distributed.run", *given),
            *("-m", "mmmoe.cli", "resume", str(folder), *overrides),
        ]

    def show(self, spec: RunSpec, folder: Path, overrides: list[str]) -> Iterator[str]:
        """Yields the command, for a shell."""
        yield shlex.join(self.command(spec, folder, overrides))

    def start(self, spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
        """Carries the run out; returns the exit status."""
        command = self.command(spec, folder.path.absolute(), overrides)
        process = subprocess.Popen(command, env=dist.with_variables({"HF_HUB_OFFLINE": "1"}))
        # torchrun says 1 whatever its processes said: the ledger knows better.
        status = wait_for([Child("torchrun", process, process.terminate)], spec.engine.deadline_s)
        was_asked = status and folder.events()[-1]["event"] == "stopped"
        return STOPPED if was_asked else status
