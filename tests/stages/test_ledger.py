"""The run folder: never overwritten, locked, and readable after a crash in the middle of a line."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec


@pytest.fixture(scope="module")
def spec():
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)


def test_a_second_run_gets_a_folder_of_its_own(spec, tmp_path):
    here = spec.model_copy(update={"runs": str(tmp_path)})
    names = [RunFolder.create(here).path.name for _ in range(3)]
    assert names == ["llava_mole_tiny", "llava_mole_tiny-2", "llava_mole_tiny-3"]


def test_a_folder_with_something_in_it_is_refused(spec, tmp_path):
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        RunFolder.create(spec, tmp_path)
    assert (tmp_path / "mine").read_text() == "keep me"


def test_the_resolved_spec_comes_back(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    assert RunFolder.open(folder.path).spec() == spec
    assert RunFolder.open(folder.path).spec(["seed=7"]).seed == 7


def test_a_line_cut_short_is_left_out(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    folder.record("stage_done", stage="align")
    with (folder.path / "ledger.jsonl").open("a") as file:
        file.write('{"event": "stage_do')
    assert list(RunFolder.open(folder.path).done()) == ["align"]


def test_an_event_after_a_torn_line_is_not_lost(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    with (folder.path / "ledger.jsonl").open("a") as file:
        file.write('{"event": "stage_do')
    folder.record("stage_done", stage="align")
    assert list(folder.done()) == ["align"]


def test_only_one_process_at_a_time(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    with folder.lock(), pytest.raises(ValueError, match="in use"):
        folder.lock()
    folder.lock().close()
