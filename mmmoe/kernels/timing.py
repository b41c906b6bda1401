"""What every benchmark needs: settings, seconds that include the work of the device, and the name of the machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmmoe.log import console


def settings(arguments: Sequence[str], defaults: dict[str, int]) -> tuple[dict[str, int], str | None]:
    """Returns the sizes of a benchmark given as `key=value`, and the file its result goes to (`out=FILE`).

    Raises:
        ValueError: A key that the benchmark does not have.
    """
    given = dict(argument.split("=", 1) for argument in arguments)
    out = given.pop("out", None)
    unknown = set(given) - set(defaults)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}; there are {sorted(defaults)} and out")
    return defaults | {key: int(value) for key, value in given.items()}, out


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one call, device work included."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def machine(device: torch.device) -> str:
    """Returns the name of what a benchmark ran on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def report(result: dict[str, Any], out: str | None) -> None:
    """Prints a result and writes it to a file if one is named."""
    if out is not None:
        Path(out).write_text(json.dumps(result, indent=1) + "\n")
    console.print_json(json.dumps(result))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
