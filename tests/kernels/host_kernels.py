"""The CUDA sources on the CPU: the library of fibres, its schedules, and copies with a barrier taken out."""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from mmmoe.kernels.backend import call, library
from mmmoe.kernels.build import build, source_folder, toolkit
from mmmoe.kernels.route_topk.op import RULES, UNLIMITED
from mmmoe.kernels.route_topk.reference import Routing

needs_toolkit = pytest.mark.skipif(
    toolkit() is None or shutil.which("g++") is None, reason="the CUDA headers or g++ are missing on this machine"
)
BARRIER = re.compile(r"^\s*__sync(threads|warp)\(\);$", re.MULTILINE)
UNSET = -12345


def schedule(loaded, seed, by_priority):
    call(loaded, "mmmoe_host_schedule", seed, int(by_priority))


def barriers(file):
    """Returns the barriers of a source file, as matches."""
    return list(BARRIER.finditer((source_folder() / file).read_text()))


def without_barrier(file, number, folder: Path):
    """Returns a library built from sources in which one barrier is taken out."""
    copy = folder / f"{file}-{number}"
    shutil.copytree(source_folder(), copy)
    text = (copy / file).read_text()
    found = list(BARRIER.finditer(text))[number]
    (copy / file).write_text(text[: found.start()] + text[found.end() :])
    return library(build("host", copy).as_posix())


def survives(check) -> bool:
    """Says whether a check returns true, in a process of its own: a kernel without a barrier may write anywhere."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a crash is an answer here
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def route_on_host(loaded, logits_NE, num_chosen, gates="softmax", capacity=None):
    """Runs the routing kernels as fibres; outputs and workspace start with what no kernel writes."""
    num_tokens, num_experts = logits_NE.shape
    num_slots = num_tokens * num_chosen
    gate = torch.full((num_tokens, num_chosen), float("nan"))
    whole = [
        torch.full(size, UNSET)
        for size in ((num_tokens, num_chosen), (num_experts,), (num_experts + 1,), (num_slots,), (num_slots,))
    ]
    size = loaded.mmmoe_route_workspace(num_tokens, num_experts, num_chosen)
    workspace = torch.full((max(size, 1),), UNSET, dtype=torch.int32)
    limit = UNLIMITED if capacity is None else capacity
    call(
        loaded, "mmmoe_route", logits_NE, gate, *whole, workspace, num_tokens, num_experts, num_chosen,
        RULES[gates], limit, 0,
    )  # fmt: skip
    return Routing(gate, *whole)
