"""Runs the benchmarks of kernels/bench, prints their table, writes JSON and a plot, and checks the bounds.

    python -m mmmoe.kernels.bench NAME [size=number ...] [--json FILE or FOLDER] [--check]

is `mmmoe bench NAME` for a machine that has torch and little else. In a folder the file is named by machine, day and,
but for `kernels`, benchmark.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from mmmoe.kernels.backend import active
from mmmoe.kernels.measure import Result, here, machine, one_thread
from mmmoe.kernels.plots import bars, curves
from mmmoe.log import console
from mmmoe.paths import project_root

ALL = "kernels"
ALONE = {"lora"}
"""Benchmarks that are no part of ALL: minutes long, of whole layers rather than one op, asked for by name."""
Draw = Callable[[Mapping[str, Any]], Figure]
"""Makes a picture from the content of a file of results."""


def names() -> list[str]:
    """Returns the benchmarks there are: the ops', and those that stand ALONE."""
    return sorted(path.stem.removeprefix("bench_") for path in _folder().glob("bench_*.py"))


def measure(name: str, sizes: dict[str, int]) -> list[Result]:
    """Runs one benchmark, or those of all ops for `kernels`, and returns what they yield, each with its sizes.

    Raises:
        ValueError: There is no such benchmark, or it has no such size.
    """
    wanted = [each for each in names() if each not in ALONE] if name == ALL else [name]
    if not set(wanted) <= set(names()):
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join((*names(), ALL))}")
    modules = [load(each) for each in wanted]
    known = {key for module in modules for key in module.DEFAULTS}
    if not set(sizes) <= known:
        raise ValueError(f"unknown sizes {sorted(set(sizes) - known)}; {name} has {sorted(known)}")
    results = []
    device = here()
    with one_thread(device):
        for module in modules:
            size = module.DEFAULTS | {key: value for key, value in sizes.items() if key in module.DEFAULTS}
            results += [replace(r, sizes=r.sizes or size) for r in _told(module.measure(size, device))]
    return results


def publish(name: str, results: Sequence[Result], out: Path | None, *, check: bool, draw: Draw | None = None) -> bool:
    """Prints the table, writes JSON and PNG if a file is given; says whether all bounds hold, if that is asked for.

    Args:
        name: of the benchmark.
        results: its results.
        out: a file or folder.
        check: whether a missed bound counts.
        draw: makes the picture from what is written to the file; without it, curves or bars.
    """
    device = here()
    title = f"{name}, {machine(device)}"
    points = [r for r in results if r.point is not None]
    console.print(_table(title, [r for r in results if r.point is None]))
    for table in _tables_of_curves(points):
        console.print(table)
    if out is not None:
        out = _file(out, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "name": name,
            "machine": machine(device),
            "backend": active(device.type).name,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "clock": "device time" if device.type == "cuda" else "CPU time of the process, one thread",
        }
        content = about | {"results": [asdict(r) for r in results]}
        out.write_text(json.dumps(content, indent=1) + "\n")
        picture = draw(content) if draw else curves(title, points) if points else bars(title, results)
        picture.savefig(out.with_suffix(".png"), dpi=120)
        console.print(f"written to {out} and {out.with_suffix('.png')}", soft_wrap=True)
    if not check:
        return True
    for r in results:
        if r.bound is not None:
            verdict = "met" if r.is_met else "MISSED"
            console.print(f"{verdict}: {r.name} / {r.versus} {r.ratio:.3f}, bound {r.bound:.2f}", soft_wrap=True)
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


def load(name: str) -> Any:
    """Returns a benchmark's module; it may import others that lie beside it."""
    path = _folder() / f"bench_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(_folder()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_folder()))
    return module


def _told(results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        console.print(f"{result.name}: {result.ratio:.2f} x {result.versus}", style="dim", soft_wrap=True)
        yield result


def _table(title: str, results: Sequence[Result]) -> Table:
    table = Table("what", "versus", "ratio", "range", "own / versus", "bound", title=title)
    for r in results:
        ratio = f"{'' if r.is_met else '[bold red]'}{r.ratio:.2f}"
        bound = "" if r.bound is None else f"{r.bound:.2f}"
        values = f"{_short(r.value)} / {_short(r.versus_value)} {r.unit}"
        table.add_row(r.name, r.versus, ratio, f"{r.low:.2f} to {r.high:.2f}", values, bound)
    return table


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _tables_of_curves(results: Sequence[Result]) -> list[Table]:
    """Returns a table for each axis: a row for each curve, a column for each place."""
    placed = [(r.point, f"{r.ratio:.2f}") for r in results if r.point is not None]
    tables = []
    for axis in dict.fromkeys(point.axis for point, _ in placed):
        here = [(point, ratio) for point, ratio in placed if point.axis == axis]
        places = sorted({point.at for point, _ in here})
        table = Table("level", f"over {results[0].versus}", *map(str, places), title=f"curves over {axis}")
        found = {(point.level, point.curve, point.at): ratio for point, ratio in here}
        for level, curve in dict.fromkeys((point.level, point.curve) for point, _ in here):
            table.add_row(level, curve, *(found.get((level, curve, place), "") for place in places))
        tables.append(table)
    return tables


def _file(out: Path, name: str) -> Path:
    """Returns the file itself, or one in that folder named by machine, day and benchmark."""
    if out.suffix == ".json":
        return out
    where = re.sub(r"[^a-z0-9]+", "-", machine(here()).lower()).strip("-")
    what = "" if name == ALL else f"-{name}"
    return out / f"{where}-{datetime.now(UTC).date().isoformat()}{what}.json"


def _folder() -> Path:
    return project_root() / "kernels" / "bench"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
