"""Which implementation of the ops is active on a device, and why; the calls into the compiled libraries.

Both libraries, the CUDA kernels and the C++ ones for the CPU, offer the same functions: an op has one caller for both
devices, and one path in plain torch for where neither can be had.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmmoe.kernels.build import Target, build

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""Element types as kernels/csrc numbers them."""
TYPES = tuple(TYPE_CODES)
"""Element types that every op takes."""
KERNEL_TYPES = {"cuda": TYPES[:3], "cpu": TYPES}
"""Element types that the kernels of a device know; others run in torch."""


@dataclass(frozen=True)
class Backend:
    """What runs an op on tensors of one kind of device."""

    name: Literal["cuda", "c++", "torch"]
    reason: str


@functools.cache
def active(device: str) -> Backend:
    """Returns the backend of a kind of device, settled once a process; the library is compiled now if it must be."""
    if device == "cuda" and not torch.cuda.is_available():
        return Backend("torch", "torch sees no CUDA device")
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return Backend("torch", f"{torch.cuda.get_device_name()} is older than compute capability 8.0")
    try:
        compiled(device)
    except (RuntimeError, OSError) as error:
        return Backend("torch", str(error).splitlines()[0])
    if device == "cuda":
        return Backend("cuda", f"compiled for {torch.cuda.get_device_name()}")
    return Backend("c++", "compiled for this processor")


@functools.cache
def compiled(device: str) -> ctypes.CDLL:
    """Returns the library for a kind of device; found or compiled once a process, never in a step."""
    target: Target | None = {"cuda": "cuda", "cpu": "cpu"}.get(device)  # type: ignore[assignment]  # literals
    if target is None:
        raise RuntimeError(f"there are no kernels for {device}")
    return ctypes.CDLL(build(target).as_posix())


def has_kernels(tensor: Tensor) -> bool:
    """Says whether the compiled kernels of a tensor's device take its type."""
    device = tensor.device.type
    return tensor.dtype in KERNEL_TYPES.get(device, ()) and is_compiled(device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile asks once, traces nothing
def is_compiled(device: str) -> bool:
    """Says whether there are compiled kernels for a kind of device."""
    return active(device).name != "torch"


def call(loaded: ctypes.CDLL, name: str, *arguments: Tensor | int | None, stream: int = 0) -> None:
    """Calls a launcher: tensors become pointers, None the null pointer, integers 64 bits wide, the stream comes last.

    Raises:
        RuntimeError: The launcher refused, or the device did.
    """
    given: list[Any] = [
        ctypes.c_int64(argument)
        if isinstance(argument, int)
        else ctypes.c_void_p(None if argument is None else argument.data_ptr())
        for argument in arguments
    ]
    status = getattr(loaded, name)(*given, ctypes.c_void_p(stream))
    if status != 0:
        raise RuntimeError(f"{name} failed with status {status} (-1: arguments, otherwise a cudaError_t)")


def workspace_size(name: str, *sizes: int, device: torch.device) -> int:
    """Returns how many elements of workspace a launcher of a device's library wants."""
    query = getattr(compiled(device.type), name)
    query.restype = ctypes.c_int64
    return int(query(*map(ctypes.c_int64, sizes)))


def answer(question: str, device: str) -> int:
    """Returns the answer of a device's library to a question without arguments; 0 where it does not know it."""
    asked = getattr(compiled(device), question, None)
    return 0 if asked is None else int(asked())


def launch(name: str, *arguments: Tensor | int | None, device: torch.device) -> None:
    """Calls a launcher of a device's library, on its current stream."""
    if device.type == "cpu":
        return call(compiled("cpu"), name, *arguments)
    with torch.cuda.device(device):
        return call(compiled("cuda"), name, *arguments, stream=torch.cuda.current_stream(device).cuda_stream)
