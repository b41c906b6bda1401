"""What tests start and launch goes through one warm server a test process, with the face of `subprocess.Popen`."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warm import Process, Warm


@functools.cache
def server() -> Warm:
    """Returns this process's server; it ends when this process does."""
    return Warm(Path(tempfile.mkdtemp(prefix="mmmoe-said-")))


class WarmProcess(Process):
    """A process forked by the server."""

    def __init__(self, arguments: Sequence[object], environment: Mapping[str, str], *, leads: bool) -> None:
        self.args = list(map(str, arguments))
        handle, name = tempfile.mkstemp(prefix="mmmoe-said-")
        os.close(handle)
        self.output = Path(name)
        self.pid = server().fork(self.args, environment, self.output, leads)

    def poll(self) -> int | None:
        """Returns the exit status once there is one; below zero it is the signal's number."""
        if self.returncode is None:
            status = server().ask(status_of=self.pid)
            assert status is None or isinstance(status, int)
            self.returncode = status
            if status is not None:
                self.on_end()
        return self.returncode

    def on_end(self) -> None:
        """Is called once, at its end."""

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        """Waits for its end; returns what it said."""
        self.wait(timeout)
        return self.output.read_bytes(), None


class WarmWorker(WarmProcess):
    """A worker that the command line, run inside a test process, starts: what it says goes where it was told to."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: int | None = None,
        stdout: Any = None,
        stderr: Any = None,
        preexec_fn: Callable[[], None] = lambda: None,
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "mmmoe.cli"], command
        assert stderr is stdout, "one output for both"
        self._to = os.dup(2 if stdout is None else stdout.fileno())
        super().__init__(command[3:], env, leads=False)

    def on_end(self) -> None:
        os.write(self._to, self.output.read_bytes())
        os.close(self._to)
