"""A run as a Slurm job: a script that saves before its time is over, and is queued again until the run is done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmmoe import env
from mmmoe.log import console
from mmmoe.stages.ledger import STOP_FILE, RunFolder
from mmmoe.stages.options import as_given, long_options, parse_options
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import FINAL, STOPPED
from mmmoe.stages.variables import shown, write_private

SCRIPT, VARIABLES = "launch.sbatch", "slurm.env"
VALUE = r"[\w@%+=:,./()\[\]*~-]*"
"""What a #SBATCH line keeps as it is."""
NOT_A_RUN = ("help", "usage", "version", "test-only", "wrap", "array", "parsable")
"""Options of sbatch that do something else, or the same run several times."""


@dataclass(frozen=True)
class Slurm:
    """A job, by sbatch's own options."""

    options: dict[str, str | None]

    @property
    def option(self) -> str:
        """Returns what asks for it."""
        return as_given("--slurm", self.options)

    @classmethod
    def of(cls, words: list[str]) -> Slurm:
        """Reads `name=value`, the names being sbatch's long options.

        Raises:
            ValueError: A word is no option, or has a value that a script cannot hold.
        """
        options = parse_options("--slurm", words, "nodes=2", NOT_A_RUN)
        for name in ("nodes", "ntasks", "ntasks-per-node"):
            if re.fullmatch("0+", options.get(name) or ""):
                raise ValueError(f"--slurm {name}={options[name]}: a run needs at least 1")
        for name, value in options.items():
            if not re.fullmatch(VALUE, value or "", re.ASCII):
                raise ValueError(f"--slurm {name}={value!r}: blanks, quotes and the like do not fit into #SBATCH lines")
        return cls(options)

    def check(self, spec: RunSpec, path: Path, overrides: list[str], *, is_new: bool) -> None:
        """Asks sbatch, where it works, whether it knows the options and can read their values.

        Raises:
            ValueError: It does not, or cannot.
        """
        if no_sbatch() is not None:
            return
        problems = []
        for option in long_options(self.options):
            # With --help behind it the option is read, and nothing is sent to anybody.
            done = _run(["sbatch", option, "--help"])
            if done.returncode:
                said = _words(done.stderr)[0]
                # An option that needs a value takes --help for it.
                lacks = "=" not in option and not re.search("unrecognized|ambiguous", said)
                said = "needs a value, as --slurm nodes=2" if lacks else said
                problems.append(f"--slurm {option.removeprefix('--')}: {said}")
        if problems:
            raise ValueError("\n".join([*problems, "see `man sbatch` for its long options"]))

    def reach(self) -> None:
        """Has nothing to look at: where no sbatch works the script is taken to where one does."""

    def world(self, spec: RunSpec) -> int | None:
        """Returns the number of processes, None where Slurm decides it."""
        nodes, tasks = self.options.get("nodes") or "1", self.options.get("ntasks") or ""
        if tasks.isdecimal():
            return int(tasks)
        each = self._each(spec)
        return int(nodes) * int(each) if nodes.isdecimal() and each.isdecimal() else None

    def _each(self, spec: RunSpec) -> str:
        """Returns the tasks of a node: one a GPU, or `engine.processes` where no GPUs are asked for."""
        given = self.options.get("ntasks-per-node")
        gpus = re.search(r"(?:^|:)(\d+)$", self.options.get("gpus-per-node") or "")
        gpus = gpus or re.search(r"gpu(?::[^,]*)?:(\d+)(?:,|$)", self.options.get("gres") or "")
        return given or (gpus[1] if gpus else str(spec.engine.processes))

    def script(self, spec: RunSpec, folder: Path, overrides: list[str]) -> str:
        """Returns the script: options, variables, srun as often as it may help, and what the exit status means."""
        own: dict[str, str | None] = {"job-name": spec.name, "nodes": "1"}
        own |= {} if "ntasks" in self.options else {"ntasks-per-node": self._each(spec)}
        # TERM comes 120 s before the end of the time, to the processes and not to this script.
        own |= {"output": "logs/slurm-%j.out", "open-mode": "append", "signal": "TERM@120", "requeue": None}
        lines = [f"#SBATCH {option}" for option in long_options({**own, **self.options})]
        threads = spec.engine.threads
        threads_word = str(threads) if threads else '"${SLURM_CPUS_PER_TASK:-1}"'
        final = "|".join(str(status) for status in FINAL if status != STOPPED)
        command = shlex.join([sys.executable, "-m", "mmmoe.cli", "resume", str(folder), *overrides])
        return "\n".join(
            [
                "#!/bin/bash",
                *lines,
                f"# Written by mmmoe launch. To submit it again: cd {shlex.quote(str(folder))} && sbatch {SCRIPT}",
                f"cd {shlex.quote(str(Path.cwd()))} || exit 2",
                f". {shlex.quote(str(folder / VARIABLES))} || exit 2",
                f"export OMP_NUM_THREADS={threads_word}",
                f"restarts={spec.engine.restarts}",
                "while true; do",
                "    # Processes of a run that lost one end by themselves, after saying which: srun is to let them.",
                f"    srun --kill-on-bad-exit=0 {command}",
                "    status=$?",
                "    case $status in",
                f"        {final}) exit $status ;;",
                f"        {STOPPED}) break ;;",
                "    esac",
                '    [ "$restarts" -gt 0 ] || exit $status',
                "    restarts=$((restarts - 1))",
                "done",
                "# Saved and stopped: by the time limit, so that the job goes on later, or by whoever made the file.",
                f'[ -e {shlex.quote(str(folder / STOP_FILE))} ] || scontrol requeue "$SLURM_JOB_ID"',
                f"exit {STOPPED}",
                "",
            ]
        )

    def show(self, spec: RunSpec, folder: Path, overrides: list[str]) -> Iterator[str]:
        """Yields the script, and what the file of variables beside it will say."""
        yield self.script(spec, folder, overrides)
        yield f"# {folder / VARIABLES}: {shlex.join(shown(env.handed_on(1)))}"

    def start(self, spec: RunSpec, folder: RunFolder, overrides: list[str]) -> int:
        """Writes the script into the run folder and submits it; returns the exit status.

        Raises:
            ValueError: Slurm is not here, or refuses the job.
        """
        path = folder.path.absolute()
        exports = (f"export {name}={shlex.quote(value)}\n" for name, value in env.handed_on(1).items())
        write_private(path / VARIABLES, "".join(exports))
        (path / SCRIPT).write_text(self.script(spec, path, overrides), encoding="utf-8")
        (path / "logs").mkdir(exist_ok=True)
        why = no_sbatch()
        if why is not None:
            raise ValueError(f"{why}; submit the script where it works: cd {path} && sbatch {SCRIPT}")
        done = _run(["sbatch", SCRIPT], path)
        if done.returncode:
            raise ValueError(f"{path / SCRIPT} was not submitted: {'; '.join(_words(done.stderr))}")
        world = self.world(spec)
        size = f", {world} processes" if world is not None else ""
        console.print(f"{done.stdout.strip()}{size}; it writes to {path}/logs", soft_wrap=True, highlight=False)
        return 0


def no_sbatch() -> str | None:
    """Returns why no job can be submitted from here, None where it can as far as sbatch itself knows."""
    if not shutil.which("sbatch"):
        return "sbatch is not here"
    done = _run(["sbatch", "--help"])
    return f"sbatch finds no Slurm here ({_words(done.stderr)[-1]})" if done.returncode else None


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _words(said: str) -> list[str]:
    """Returns what sbatch says went wrong, line by line, without its own name."""
    lines = [re.sub(r"^sbatch: (error: |fatal: )?", "", line) for line in said.strip().splitlines()]
    return lines or ["it does not say why"]
