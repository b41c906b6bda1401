"""What nvcc made of the kernels: nothing spilled to local memory, rows moved 16 bytes at a time."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mmmoe.kernels.build import build, toolkit


def disassembler() -> str | None:
    """Returns cuobjdump: of the toolkit, or the one that comes with Triton, which comes with torch."""
    places = [toolkit()] if toolkit() else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia")
    found = [place / "bin" / "cuobjdump" for place in places]
    return next((str(path) for path in found if path.is_file()), shutil.which("cuobjdump"))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed on this machine"),
    pytest.mark.skipif(disassembler() is None, reason="there is no cuobjdump on this machine"),
]
MOVES = re.compile(r"\b((?:LDG|STG|LDL|STL|HMMA|MOVM)(?:\.[A-Z0-9_]+)*)\b")


@pytest.fixture(scope="module")
def kernels() -> dict[str, Counter[str]]:
    """Memory and matrix instructions of each kernel, over both architectures."""
    tool = disassembler()
    assert tool is not None
    text = subprocess.run([tool, "-sass", build("cuda")], capture_output=True, text=True, check=True).stdout
    found: dict[str, Counter[str]] = {}
    for part in text.split("Function : ")[1:]:
        found.setdefault(part.split(maxsplit=1)[0], Counter()).update(MOVES.findall(part))
    return found


def test_every_kernel_is_there(kernels):
    names = ("choose", "scan", "place", "rank_given", "dispatch", "combine", "shrink", "expand", "outer")
    for name in (*names, "find_edges", "hidden", "by_tokens", "by_experts", "sum_parts"):
        assert any(name in kernel for kernel in kernels), name


def test_nothing_is_spilled_or_kept_in_local_memory(kernels):
    local = {kernel: moves for kernel, moves in kernels.items() if any(m.startswith(("LDL", "STL")) for m in moves)}
    assert local == {}


@pytest.mark.parametrize("name", ["8dispatch", "7combine", "16combine_backward"])
def test_rows_move_sixteen_bytes_at_a_time(kernels, name):
    wide = {k: m for k, m in kernels.items() if name + "I" in k and re.search(r"PackI\w+?Li[48]E", k)}
    assert wide, "a kernel for packs of 16 bytes"
    for kernel, moves in wide.items():
        stores = {move for move in moves if move.startswith("STG")} - {"STG.E"}  # dgate has 4 bytes
        assert stores == {"STG.E.128"}, kernel
        assert name == "16combine_backward" or moves["STG.E"] == 0, kernel
        loads = {move.removesuffix(".CONSTANT") for move in moves if move.startswith("LDG")}
        assert loads <= {"LDG.E.128", "LDG.E.64", "LDG.E"}, kernel  # rows; order and inverse; gates
        assert "LDG.E.128" in loads, kernel


@pytest.mark.parametrize("name", ["6hidden", "9by_tokens", "10by_experts"])
def test_half_types_use_matrix_units_and_four_elements_a_load(kernels, name):
    found = {kernel: moves for kernel, moves in kernels.items() if name + "I" in kernel}
    assert len(found) == 5  # two half types, four elements at a time or one, and float32
    for kernel, moves in found.items():
        is_half, is_quads = f"{name}If" not in kernel, "Lb1E" in kernel
        assert any(move.startswith("HMMA.16816.F32") for move in moves) == is_half, kernel
        if is_quads:
            assert not any(move.startswith(("LDG.E.U16", "STG.E.U16")) for move in moves), kernel
            assert any(move.startswith("LDG.E.128") for move in moves), kernel
