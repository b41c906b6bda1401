"""A run under torchrun: on this node, and on others where the same command is given."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mmmoe import env
from mmmoe.stages.children import Child, wait_for
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.options import as_given, long_options, parse_options
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import STOPPED

NOT_A_RUN = ("help", "module", "no-python", "run-path", "print-completion")
"""Options of torchrun that start something else."""


@dataclass(frozen=True)
class Torchrun:
    """torchrun, by its own options."""

    options: dict[str, str | None]

    @property
    def option(self) -> str:
        """Returns what asks for it."""
        return as_given("--torchrun", self.options)

    @classmethod
    def of(cls, words: list[str]) -> Torchrun:
        """Reads `name=value`, the names being torchrun's long options.

        Raises:
            ValueError: A word is no option.
        """
        return cls(parse_options("--torchrun", words, "nproc-per-node=8", NOT_A_RUN))

    def world(self, spec: RunSpec) -> int | None:
        """Returns the number of processes, None where torchrun decides it."""
        nodes, each = (self.options.get(name) or "1" for name in ("nnodes", "nproc-per-node"))
        return int(nodes) * int(each) if nodes.isdecimal() and each.isdecimal() else None

    def check(self, spec: RunSpec, path: Path, overrides: list[str], *, is_new: bool) -> None:
        """Refuses what torchrun cannot do.

        Raises:
            ValueError: torchrun does not take the options, several nodes would make a folder each, or restarts are
                asked for.
        """
        self._check_options()
        if is_new and self.options.get("nnodes") not in (None, "1", "1:1"):
            raise ValueError(
                f"--torchrun nnodes={self.options['nnodes']}: the command is given on every node, each would make a "
                "run folder of its own; begin with torchrun itself, which makes one for all, `torchrun --nnodes ... "
                "-m mmmoe.cli run CONFIG`, and go on with `mmmoe launch RUN --torchrun ...`"
            )
        if spec.engine.restarts or self.options.get("max-restarts") not in (None, "0"):
            raise ValueError(
                "torchrun would start again what was stopped on request, or is a mistake to correct, too: set "
                "engine.restarts=0 and leave max-restarts out. On one machine `mmmoe run` and `mmmoe resume` take "
                "engine.restarts, over several `mmmoe launch --hostfile` and --slurm do"
            )

    def _check_options(self) -> None:
        """Asks torchrun's own parser; it leaves the numbers of nodes and processes to the start."""
        from torch.distributed.run import get_args_parser

        said, parser = io.StringIO(), get_args_parser()
        parser.allow_abbrev = False  # `world` reads the options by their whole names
        try:
            with redirect_stderr(said), redirect_stdout(said):
                given = parser.parse_args([*long_options(self.options), "script"])
        except SystemExit:
            last = (said.getvalue().strip().splitlines() or ["not taken"])[-1]
            raise ValueError(f"--torchrun: {last.rpartition('error: ')[2]}; see `torchrun --help`") from None
        for name, value, allowed in (
            ("nnodes", given.nnodes, r"[1-9]\d*(:[1-9]\d*)?"),
            ("nproc-per-node", given.nproc_per_node, r"[1-9]\d*|auto|cpu|gpu|xpu"),
        ):
            if not re.fullmatch(allowed, value, re.ASCII):
                raise ValueError(f"--torchrun {name}={value}: is no number; see `torchrun --help`")

    def reach(self) -> None:
        """Has nothing to look at: torchrun is here."""

    def command(self, folder: Path, overrides: list[str]) -> list[str]:
        """Returns the command: what torchrun starts goes on with the run."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", *long_options(self.options)),
            *("-m", "mmmoe.cli", "resume", str(folder), *overrides),
        ]

    def show(self, spec: RunSpec, folder: Path, overrides: list[str]) -> Iterator[str]:
        """Yields the command, for a shell."""
        yield shlex.join(self.command(folder, overrides))

    def start(self, spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
        """Carries the run out; returns the exit status."""
        command = self.command(folder.path.absolute(), overrides)
        process = subprocess.Popen(command, env=env.with_variables({"HF_HUB_OFFLINE": "1"}))
        # torchrun says 1 whatever its processes said: the ledger knows better.
        status = wait_for([Child("torchrun", process, process.terminate)], spec.engine.deadline_s)
        was_asked = status and folder.events()[-1]["event"] == "stopped"
        return STOPPED if was_asked else status
