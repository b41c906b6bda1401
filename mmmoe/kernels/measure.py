"""How benchmarks measure: contenders take turns in one process, and what counts is the ratio of their medians.

On a CPU the clock is that of the process, with one thread, so that other jobs of the machine hardly matter. On a GPU it
is the device's own, between two events. Bytes are counted once: they are the same in every round (memory.py).
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.progress import Progress
from torch import Tensor

from mmmoe.log import console

WARMUP = 2
LEAST_SECONDS = 2.0
REDRAW_SECONDS = 0.2
HEAD_START = 2_000_000
"""Cycles that a GPU idles, about a millisecond, while the host launches what is timed."""
Run = Callable[[], object]
Unit = Literal["ms", "MiB", "rows"]


@dataclass(frozen=True)
class Point:
    """Where a result stands among the curves: `curve` over `axis`, in the row of panels of a level."""

    level: str
    axis: str
    at: int
    curve: str


@dataclass(frozen=True)
class Result:
    """One contender against another: medians of the same rounds, or amounts."""

    name: str
    versus: str
    ratio: float
    low: float
    """Least ratio of a round."""
    high: float
    value: float
    versus_value: float
    unit: Unit = "ms"
    error: float | None = None
    """Largest difference of the two results over the largest number in them."""
    bound: float | None = None
    """The ratio that must not be passed, if there is one."""
    sizes: dict[str, int] | None = None
    """What the benchmark was run with."""
    point: Point | None = None
    """Its place among the curves, if it is no row of the table."""

    @property
    def is_met(self) -> bool:
        """Says whether the bound, if any, holds."""
        return self.bound is None or self.ratio <= self.bound


def here() -> torch.device:
    """Returns the device that benchmarks run on: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> str:
    """Returns the name of what a benchmark ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Inside, torch and the kernels use one thread on a CPU."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def showing(total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells a terminal what comes next of so many things; elsewhere it is silent.

    A thread that redraws would be part of the process' CPU time, so the line changes between two runs, and rarely.
    """
    with Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        done, shown = itertools.count(), 0.0

        def show(name: str) -> None:
            nonlocal shown
            number, now = next(done), time.perf_counter()
            if now - shown > REDRAW_SECONDS:
                progress.update(task, completed=number, description=name, refresh=True)
                shown = now

        yield show


def seconds_of(parts: Sequence[Run], device: torch.device) -> list[float]:
    """Returns the seconds from the start to the end of each part: CPU time of this process, or the device's time."""
    if device.type == "cpu":
        started = time.process_time()
        ends = []
        for part in parts:
            part()
            ends.append(time.process_time() - started)
        return ends
    begin, *events = (torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1))  # type: ignore[no-untyped-call]  # torch's
    torch.cuda.synchronize(device)
    torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]  # the host's time to launch is not the kernel's
    begin.record()
    for part, event in zip(parts, events, strict=True):
        part()
        event.record()
    torch.cuda.synchronize(device)
    return [float(begin.elapsed_time(event)) / 1e3 for event in events]


def take_turns(ways: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of each way in each round; every round runs all ways, from another one on.

    There are at least so many rounds, and as many more as fit into LEAST_SECONDS: short runs need more for one median.
    """
    (times,) = take_turns_in_parts({name: [run] for name, run in ways.items()}, rounds, device)
    return times


def take_turns_in_parts(
    ways: Mapping[str, Sequence[Run]], rounds: int, device: torch.device, *, warmup: int = WARMUP
) -> list[dict[str, list[float]]]:
    """Returns the same for ways of several parts: for each part the seconds from the start to its end."""
    num_parts = len(next(iter(ways.values())))
    times: list[dict[str, list[float]]] = [{name: [] for name in ways} for _ in range(num_parts)]
    names = list(ways)
    started = time.perf_counter()
    with showing((warmup + rounds) * len(names)) as show:
        for round_ in itertools.count():
            if round_ >= warmup + rounds and time.perf_counter() - started > LEAST_SECONDS:
                break
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                show(name)
                seconds = seconds_of(ways[name], device)
                if round_ >= warmup:
                    for part, end in zip(times, seconds, strict=True):
                        part[name].append(end)
    return times


def compare(
    name: str,
    own: list[float],
    versus: str,
    other: list[float],
    *,
    bound: float | None = None,
    error: float | None = None,
) -> Result:
    """Returns the ratio of two ways that took turns."""
    each = [a / b for a, b in zip(own, other, strict=True)]
    mine, theirs = statistics.median(own), statistics.median(other)
    ratio = mine / theirs
    return Result(name, versus, ratio, min(each), max(each), 1e3 * mine, 1e3 * theirs, error=error, bound=bound)


def compare_amounts(
    name: str, own: float, versus: str, other: float, unit: Unit, *, bound: float | None = None
) -> Result:
    """Returns the ratio of what two ways take of something that is the same in every round."""
    ratio = own / other
    return Result(name, versus, ratio, ratio, ratio, own, other, unit=unit, bound=bound)


def difference(found: Tensor, want: Tensor) -> float:
    """Returns the largest difference over the largest number."""
    found, want = found.detach().double(), want.detach().double()
    return float((found - want).abs().max()) / (float(want.abs().max()) or 1.0)


def rotating(draw: Callable[[], Run], device: torch.device) -> Run:
    """Returns a run that goes round several drawn inputs, so that a GPU's cache does not hold the last one's."""
    runs = itertools.cycle([draw() for _ in range(4 if device.type == "cuda" else 1)])
    return lambda: next(runs)()
