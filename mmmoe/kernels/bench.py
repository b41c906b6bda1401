"""Runs the benchmarks of kernels/bench, prints their table, writes JSON and a plot, and checks the bounds.

    python -m mmmoe.kernels.bench NAME [size=number ...] [--json FILE or FOLDER] [--check]

is `mmmoe bench NAME` for a machine that has torch and little else. In a folder the file is named by machine and day.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from mmmoe.kernels.backend import active
from mmmoe.kernels.measure import Result, here, machine, one_thread
from mmmoe.log import console
from mmmoe.paths import project_root

ALL = "kernels"


def names() -> list[str]:
    """Returns the benchmarks there are, one an op."""
    return sorted(path.stem.removeprefix("bench_") for path in _folder().glob("bench_*.py"))


def measure(name: str, sizes: dict[str, int]) -> list[Result]:
    """Runs one benchmark, or all of them for `kernels`, and returns what they yield, each with its sizes.

    Raises:
        ValueError: There is no such benchmark, or it has no such size.
    """
    wanted = names() if name == ALL else [name]
    if not set(wanted) <= set(names()):
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join((*names(), ALL))}")
    modules = [_module(each) for each in wanted]
    known = {key for module in modules for key in module.DEFAULTS}
    if not set(sizes) <= known:
        raise ValueError(f"unknown sizes {sorted(set(sizes) - known)}; {name} has {sorted(known)}")
    results = []
    device = here()
    with one_thread(device):
        for module in modules:
            size = module.DEFAULTS | {key: value for key, value in sizes.items() if key in module.DEFAULTS}
            results += [replace(result, sizes=size) for result in _told(module.measure(size, device))]
    return results


def publish(name: str, results: Sequence[Result], out: Path | None, *, check: bool) -> bool:
    """Prints the table, writes JSON and PNG if a file is given; says whether all bounds hold, if that is asked for."""
    device = here()
    table = Table("what", "versus", "ratio", "range", "ms", "bound", title=f"{name}, {machine(device)}")
    for r in results:
        ratio = f"{'' if r.is_met else '[bold red]'}{r.ratio:.2f}"
        bound = "" if r.bound is None else f"{r.bound:.2f}"
        milliseconds = f"{r.milliseconds:.3g} / {r.versus_milliseconds:.3g}"
        table.add_row(r.name, r.versus, ratio, f"{r.low:.2f} to {r.high:.2f}", milliseconds, bound)
    console.print(table)
    if out is not None:
        out = _file(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "name": name,
            "machine": machine(device),
            "backend": active(device.type).name,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "clock": "device time" if device.type == "cuda" else "CPU time of the process, one thread",
        }
        out.write_text(json.dumps(about | {"results": [asdict(r) for r in results]}, indent=1) + "\n")
        _draw(name, results).savefig(out.with_suffix(".png"), dpi=120)
        console.print(f"written to {out} and {out.with_suffix('.png')}", soft_wrap=True)
    if not check:
        return True
    for r in results:
        if r.bound is not None:
            verdict = "met" if r.is_met else "MISSED"
            console.print(f"{verdict}: {r.name} / {r.versus} {r.ratio:.2f}, bound {r.bound:.2f}", soft_wrap=True)
    return all(r.is_met for r in results)


def main(arguments: Sequence[str]) -> int:
    """Runs from the command line; returns the exit status."""
    check = "--check" in arguments
    rest = [argument for argument in arguments if argument != "--check"]
    out = None
    if "--json" in rest:
        at = rest.index("--json")
        if at + 1 == len(rest):
            raise ValueError("--json wants a file or a folder")
        out = Path(rest[at + 1])
        del rest[at : at + 2]
    name, *given = rest or [ALL]
    return 0 if publish(name, measure(name, parse_sizes(given)), out, check=check) else 1


def parse_sizes(given: Sequence[str]) -> dict[str, int]:
    """Returns sizes given as `key=number`.

    Raises:
        ValueError: Something else was given.
    """
    pairs = [argument.partition("=") for argument in given]
    wrong = [argument for argument, (_, _, value) in zip(given, pairs, strict=True) if not value.isdigit()]
    if wrong:
        raise ValueError(f"give sizes as name=number, not {', '.join(wrong)}")
    return {key: int(value) for key, _, value in pairs}


def _told(results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        console.print(f"{result.name}: {result.ratio:.2f} x {result.versus}", style="dim")
        yield result


def _draw(name: str, results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(results)), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    axes.barh(places, [r.ratio for r in results], color=["#2458c5" if r.is_met else "#c4321f" for r in results])
    for place, r in zip(places, results, strict=True):
        axes.plot([r.low, r.high], [place, place], color="#1c2430", linewidth=1)
        if r.bound is not None:
            axes.plot([r.bound, r.bound], [place - 0.4, place + 0.4], color="#e08a00", linewidth=2)
    axes.axvline(1.0, color="#667085", linewidth=0.8, linestyle="--")
    axes.set_yticks(list(places), [f"{r.name}  /  {r.versus}" for r in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max((min(r.high, 4.0) for r in results), default=1.0) * 1.05)
    axes.set_xlabel("ratio of times; line: least and most of a round, orange: bound")
    axes.set_title(f"{name}, {machine(here())}", fontsize=9, loc="left")
    return figure


def _file(out: Path) -> Path:
    """Returns the file itself, or one in that folder named by machine and day."""
    if out.suffix == ".json":
        return out
    name = re.sub(r"[^a-z0-9]+", "-", machine(here()).lower()).strip("-")
    return out / f"{name}-{datetime.now(UTC).date().isoformat()}.json"


def _folder() -> Path:
    return project_root() / "kernels" / "bench"


def _module(name: str) -> Any:
    path = _folder() / f"bench_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
