"""The CUDA sources on the CPU: ops that run through the library of fibres, its schedules, and barriers taken out."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mmmoe.kernels import backend
from mmmoe.kernels.build import build, source_folder, toolkit
from mmmoe.kernels.grouped_lora.fused import FUSED_TYPES

needs_toolkit = pytest.mark.skipif(
    toolkit() is None or shutil.which("g++") is None, reason="the CUDA headers or g++ are missing on this machine"
)
needs_kernels = pytest.mark.skipif(
    backend.active("cpu").name == "torch", reason=f"no kernels for the CPU: {backend.active('cpu').reason}"
)
CHILD_SECONDS = 10
BARRIER = re.compile(r"^\s*__sync(threads|warp)\(\);", re.MULTILINE)


@contextmanager
def fibres(loaded, seed=0, *, by_priority=False):
    """Lets every op on CPU tensors run the CUDA kernels; memory that no kernel writes is NaN or the largest integer."""
    backend.call(loaded, "mmmoe_host_schedule", seed, int(by_priority))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "compiled", lambda device: loaded)
        patch.setitem(FUSED_TYPES, "cpu", backend.KERNEL_TYPES["cuda"])
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def host_library():
    return ctypes.CDLL(build("host").as_posix())


def barriers(file):
    """Returns the barriers of a source file, as matches."""
    return list(BARRIER.finditer((source_folder() / file).read_text()))


def without_barrier(file, number, kernels, folder: Path):
    """Returns a library of the given .cu files, built with one barrier of a file taken out."""
    for path in (*source_folder().glob("*.h"), *(source_folder() / name for name in kernels)):
        shutil.copy(path, folder)
    text = (folder / file).read_text()
    found = list(BARRIER.finditer(text))[number]
    (folder / file).write_text(text[: found.start()] + text[found.end() :])
    return ctypes.CDLL(build("host", folder).as_posix())


def survives(check) -> bool:
    """Says whether a check returns true, in a process of its own: a kernel without a barrier may write anywhere.

    It may also run on and on; what needs CHILD_SECONDS of the processor does not survive.
    """
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a crash is an answer here
        used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + CHILD_SECONDS,) * 2)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
