"""The CUDA library: compiled by nvcc on any machine, small, and a message rather than a crash where no GPU is."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from mmmoe.kernels.backend import active, call
from mmmoe.kernels.build import build, source_folder

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed on this machine")


@pytest.mark.slow
@needs_nvcc
def test_nvcc_builds_one_small_library_and_keeps_it():
    path = build("cuda")
    assert path.stat().st_size <= 5_000_000
    written = path.stat().st_mtime_ns
    assert build("cuda") == path
    assert path.stat().st_mtime_ns == written, "it was compiled again"
    if not torch.cuda.is_available():
        numbers = [torch.zeros(8) for _ in range(9)]
        with pytest.raises(RuntimeError, match=r"mmmoe_route failed with status [1-9]"):
            call(ctypes.CDLL(path.as_posix()), "mmmoe_route", *numbers, 4, 2, 1, 0, 9, 0)


def test_sources_that_do_not_compile_are_told(tmp_path):
    shutil.copytree(source_folder(), tmp_path / "csrc")
    (tmp_path / "csrc" / "order.cu").write_text("#include <cstdint>\nthis is no code;\n")
    with pytest.raises(RuntimeError, match=r"could not compile|not installed|no C\+\+ compiler"):
        build("host", tmp_path / "csrc")


def test_without_a_device_the_ops_run_in_torch():
    if not torch.cuda.is_available():
        assert active("cuda").name == "torch"
        assert active("cuda").reason == "torch sees no CUDA device"
