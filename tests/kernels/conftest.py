"""Puts this folder's helper modules on the path, and runs an op by its C++ path and by the one in torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmmoe.kernels import backend

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["c++", "torch"])
def path(request, monkeypatch):
    """Where the op runs; both must give the same."""
    if request.param == "torch":
        monkeypatch.setattr(backend, "active", lambda device: backend.Backend("torch", "for this test"))
    elif backend.active("cpu").name == "torch":
        pytest.skip(f"no C++ path here: {backend.active('cpu').reason}")


@pytest.fixture
def threads():
    """Sets the number of threads of torch and the kernels, for this test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
