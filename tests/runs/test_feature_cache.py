"""The feature cache in whole runs: a damaged part is named and made anew, the limit holds or stops the run early."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_project import losses, make_project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The small project's alignment alone, on the fresh language model."""
    path = make_project(tmp_path_factory.mktemp("cached") / "project")
    declared = yaml.safe_load(path.read_text())
    declared["stages"] = [declared["stages"][1]]
    path.write_text(yaml.safe_dump(declared | {"evaluation": None}))
    return path


@pytest.fixture(scope="module")
def features(project):
    return project.parent / "cache/features"


def test_a_damaged_part_is_named_and_a_resume_makes_it_anew(project, features, mmmoe):
    status, said = mmmoe("run", project, "engine.processes=2")
    assert status == 0, said
    assert "there already" in said
    runs = project.parent / "runs"
    part = next(features.rglob("*.npy"))
    content = bytearray(part.read_bytes())
    content[128:-2000] = bytes(len(content) - 2128)  # what was read by then is lost
    part.write_bytes(content)
    status, said = mmmoe("run", project, "engine.processes=2")
    assert status == 2, said
    assert f"features {part} are damaged" in said, said
    status, said = mmmoe("resume", runs / "small-2")
    assert status == 0, said
    assert losses(runs / "small-2", "align") == losses(runs / "small", "align")


def test_a_limit_is_kept_and_one_that_is_too_small_stops_the_run_before_the_tower_runs(project, features, mmmoe):
    whole = sum(path.stat().st_size for path in features.rglob("*.npy")) / 1e9
    status, said = mmmoe("run", project, f"cache_limit_gb={whole / 2}", "model.tower.image_size=64")
    assert status == 2
    assert "more than cache_limit_gb" in said
    assert sum(path.stat().st_size for path in features.rglob("*.npy")) / 1e9 == whole
    # Another tower's features take the place of these.
    status, said = mmmoe("run", project, f"cache_limit_gb={whole * 1.5}", "model.tower.stride16=true")
    assert status == 0, said
    assert "to make room: deleted" in said
    assert sum(path.stat().st_size for path in features.rglob("*.npy")) / 1e9 <= whole * 1.5
