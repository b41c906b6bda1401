"""Options and markers of the whole test suite."""

from __future__ import annotations

import os

import pytest

# Before torch is imported: one thread a process, as each process of a run has. More would change last bits with the
# machine, and several test processes would be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Test processes started beside one another are told a width, which the console would keep whatever a test says.
os.environ.pop("COLUMNS", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", default=None, help="folder of golden groups to test instead of the copy in tests/golden"
    )
    parser.addoption("--inputs", type=int, default=300, help="damaged inputs of each fuzz test")
    parser.addoption("--fuzz-seed", type=int, default=0, help="draws other inputs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(pattern): runs once for each golden case that matches, as `case`")
