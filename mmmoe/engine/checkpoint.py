"""Checkpoints free of any layout: full tensors by canonical name, hashed, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmmoe.engine.step_folders import all_steps, step_folder
from mmmoe.log import logger

VERSION = 1
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OSError):
    """A checkpoint found no room; the ones before it are untouched."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of itself."""

    step: int
    """Optimiser steps done."""
    spec: dict[str, Any] = field(default_factory=dict)
    """The resolved declaration of the stage."""
    parent: str | None = None
    """`digest` of the checkpoint this stage started from."""
    seeds: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else in plain JSON: the stage's name, wall-clock seconds."""
    updates: int | None = None
    """Updates that the moments have had: steps, without skipped ones. None where nobody counted: all of them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    state: CheckpointState
    tensors: dict[str, Tensor]
    moments: dict[str, Tensor]
    digest: str


def write(folder: Path, state: CheckpointState, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> Path:
    """Writes `folder/step_NNNNNN`, as `write_at` does."""
    return write_at(step_folder(folder, state.step), state, tensors, moments)


def write_at(final: Path, state: CheckpointState, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint: into a hidden folder beside it first, flushed to the disk, then renamed.

    Raises:
        DiskFullError: There was no room; nothing half-written stays.
    """
    folder = final.parent
    draft = folder / f".writing_{final.name}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _require_room(folder, tensors, moments)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / MODEL)
        save_file({name: tensor.contiguous() for name, tensor in moments.items()}, draft / OPTIMIZER)
        (draft / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        files = {name: _describe(draft / name) for name in (MODEL, OPTIMIZER, STATE)}
        manifest = json.dumps({"version": VERSION, "files": files}, indent=1)
        (draft / MANIFEST).write_text(manifest, encoding="utf-8")
        for name in (*files, MANIFEST):
            _flush(draft / name)
        _flush(draft)
        _swap_in(draft, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        number = _number(error)
        if number in FULL:
            raise DiskFullError(
                errno.ENOSPC,
                f"no room to write checkpoint {final}: free space there or lower checkpoint.keep; "
                "the checkpoints before it are intact",
            ) from error
        if number is None:
            raise
        raise OSError(number, f"{os.strerror(number)}; the checkpoints before it are intact", str(final)) from error
    return final


def read(path: Path) -> Checkpoint:
    """Returns a checkpoint whose hashes are right.

    Raises:
        ValueError: The folder is not a whole checkpoint; the text says what is wrong.
    """
    faults = verify(path)
    if faults:
        raise ValueError(f"checkpoint {path} cannot be used: {'; '.join(faults)}. Take an earlier step_* folder")
    try:
        return Checkpoint(_state(path), load_file(path / MODEL), load_file(path / OPTIMIZER), digest(path))
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} holds no tensors ({error}). Take an earlier step_* folder") from error


def digest(path: Path) -> str:
    """Returns the hash of a checkpoint's manifest, which stands for all its content."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def verify(path: Path) -> list[str]:
    """Returns what is wrong with a checkpoint's files, nothing if they are as written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, expected = manifest["version"], dict(manifest["files"])
    except (FileNotFoundError, NotADirectoryError):
        return [f"{MANIFEST} is missing"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [f"{MANIFEST} is damaged"]
    if version != VERSION:
        return [f"version {version!r:.40} is not {VERSION}: read it with the mmmoe that wrote it"]
    if set(expected) != {MODEL, OPTIMIZER, STATE} or not all(isinstance(entry, dict) for entry in expected.values()):
        return [f"{MANIFEST} is damaged: it does not name {MODEL}, {OPTIMIZER} and {STATE} with their hashes"]
    return [fault for name, entry in expected.items() if (fault := _fault(path / name, entry))]


def latest_valid(folder: Path) -> Path | None:
    """Returns the newest checkpoint whose hashes are right; damaged ones are passed over with a warning."""
    for path in reversed(all_steps(folder)):
        faults = verify(path)
        if not faults:
            return path
        logger().warning("checkpoint %s is damaged and is passed over: %s", path, "; ".join(faults))
    return None


def read_state(path: Path) -> CheckpointState | None:
    """Returns what a checkpoint says of itself, its hashes unseen; None where that cannot be read."""
    try:
        return _state(path)
    except (OSError, ValueError):
        return None


def explain_mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> str | None:
    """Returns in words how stored tensors differ from what a model trains, None if they fit."""
    missing = [name for name in expected if name not in found]
    unused = [name for name in found if name not in expected]
    shapes = [
        f"{name} (model {tuple(expected[name])}, checkpoint {tuple(found[name].shape)})"
        for name in expected
        if name in found and tuple(found[name].shape) != tuple(expected[name])
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("unused", unused), ("of another shape", shapes))
        if names
    ]
    return "; ".join(parts) or None


def check_load(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """Raises ValueError unless tensors, and moments if there are any, fit the trainable parameters."""
    fault = explain_mismatch(expected, tensors)
    if fault is None and moments:
        kinds = ("exp_avg", "exp_avg_sq")
        fault = explain_mismatch({f"{kind}.{name}": expected[name] for kind in kinds for name in expected}, moments)
    if fault is not None:
        raise ValueError(
            f"the checkpoint does not fit what this stage trains: {fault}. "
            "Use the stage's own model, adapters and 'trains' patterns, or start it afresh"
        )


class BackgroundWriter:
    """Writes one checkpoint at a time beside the training; a failure comes up at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Starts a piece of work once the one before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._guard, args=(work,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits for the work at hand and raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def _state(path: Path) -> CheckpointState:
    """Returns what a checkpoint says of itself.

    Raises:
        ValueError: It is not what a checkpoint says.
    """
    try:
        state = CheckpointState(**json.loads((path / STATE).read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / STATE} is no checkpoint's state ({error})") from error
    mappings = (state.spec, state.seeds, state.extra)
    is_whole = type(state.step) is int and state.step >= 0 and isinstance(state.parent, str | None)
    if not is_whole or not all(isinstance(part, dict) for part in mappings):
        raise ValueError(
            f"{path / STATE} is no checkpoint's state: step, parent, spec, seeds or extra is of another kind"
        )
    return state


def _describe(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fault(path: Path, entry: Mapping[str, object]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry.get("bytes"):
        return f"{path.name} has {path.stat().st_size} bytes, not {entry.get('bytes')!r:.40}"
    return None if _sha256(path) == entry.get("sha256") else f"{path.name} has another hash than when it was written"


def _require_room(folder: Path, *parts: Mapping[str, Tensor]) -> None:
    """Raises ENOSPC before a write that cannot fit, so that a full disk is not filled further."""
    need = sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.values())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(errno.ENOSPC, f"the checkpoint needs {need} bytes and {free} are free")


def _number(error: Exception) -> int | None:
    """Returns the system's number of an error; safetensors has it in its text only."""
    told = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None)
    return int(told.group(1)) if number is None and told else number


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap_in(draft: Path, final: Path) -> None:
    """Renames a finished draft to its place; a folder of that name steps aside first."""
    old = final.parent / f".old_{final.name}"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    draft.rename(final)
    _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
