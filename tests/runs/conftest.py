"""Fixtures of the whole-run tests: a small project to run, and the command line in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmmoe.cli import app
from mmmoe.cli_errors import guarded
from mmmoe.stages import launch

sys.path.insert(0, str(Path(__file__).parent))

from small_project import make_project
from warm_start import WarmWorker


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project that tests read and run but do not change; returns its configuration file."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def own_project(tmp_path) -> Path:
    """A project of the test's own, to be damaged."""
    return make_project(tmp_path / "project")


@pytest.fixture
def mmmoe(monkeypatch, capfd):
    """Runs the command line in this process, its workers warm; returns (exit status, what it said)."""
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": WarmWorker}))

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmmoe", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            status = guarded(app)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 0
        out, err = capfd.readouterr()
        return status, out + err

    return call
