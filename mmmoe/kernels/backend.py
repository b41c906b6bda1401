"""Which implementation of the ops is active on this machine, and why; the calls into the compiled library."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmmoe.kernels.build import build

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types as kernels/csrc/common.h numbers them."""


@dataclass(frozen=True)
class Backend:
    """What runs an op on CUDA tensors."""

    name: str
    """cuda or torch."""
    reason: str


@functools.cache
def active() -> Backend:
    """Returns the backend, which is settled once a process; the library is compiled now if it must be."""
    if not torch.cuda.is_available():
        return Backend("torch", "torch sees no CUDA device")
    try:
        cuda_library()
    except (RuntimeError, OSError) as error:
        return Backend("torch", str(error).splitlines()[0])
    return Backend("cuda", f"compiled for {torch.cuda.get_device_name()}")


@functools.cache
def library(path: str) -> ctypes.CDLL:
    """Returns a loaded library whose functions take what `call` gives them."""
    loaded = ctypes.CDLL(path)
    loaded.mmmoe_route_workspace.argtypes = [ctypes.c_int64] * 3
    loaded.mmmoe_route_workspace.restype = ctypes.c_int64
    return loaded


@functools.cache
def cuda_library() -> ctypes.CDLL:
    """Returns the library for GPUs; found or compiled once a process, never in a step."""
    return library(build("cuda").as_posix())


def call(loaded: ctypes.CDLL, name: str, *arguments: Tensor | int, stream: int = 0) -> None:
    """Calls a launcher: tensors become pointers, integers 64 bits wide, the stream comes last.

    Raises:
        RuntimeError: The launcher refused, or the device did.
    """
    given: list[Any] = [
        ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else ctypes.c_int64(argument)
        for argument in arguments
    ]
    status = getattr(loaded, name)(*given, ctypes.c_void_p(stream))
    if status != 0:
        raise RuntimeError(f"{name} failed with status {status} (-1: arguments, otherwise a cudaError_t)")


def cuda_call(name: str, *arguments: Tensor | int, device: torch.device) -> None:
    """Calls a launcher of the CUDA library on the current stream of a device."""
    with torch.cuda.device(device):
        call(cuda_library(), name, *arguments, stream=torch.cuda.current_stream(device).cuda_stream)
