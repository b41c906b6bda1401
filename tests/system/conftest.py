"""Fixtures of the system tests: a small project, and the command line without the wait for its imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "runs"))

from small_project import make_project
from warm import Warm


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project that tests read and run but do not change; returns its configuration file."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def warm(tmp_path_factory) -> Iterator[Warm]:
    """Starts commands quickly."""
    server = Warm(tmp_path_factory.mktemp("said"))
    yield server
    server.close()
