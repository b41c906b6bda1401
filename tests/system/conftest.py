"""Fixtures of the system tests: a small project, and the command line without the wait for its imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "runs"))

from small_project import make_project
from warm import Warm
from warm_start import server


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project that tests read and run but do not change; returns its configuration file."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def warm() -> Warm:
    """Starts commands quickly."""
    return server()
