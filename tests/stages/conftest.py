"""Lets the tests of this folder import their toys, whatever way pytest imports them, and declares what is sent off."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages import sending
from mmmoe.stages.spec import RunSpec

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def spec():
    """A declaration with threads and restarts, as one that is sent to nodes."""
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, ["engine.threads=3", "engine.restarts=2"])


@pytest.fixture
def sound(monkeypatch):
    """Takes every configuration for sound: the demo's data need not be there."""
    monkeypatch.setattr(sending, "preflight", lambda spec: None)
