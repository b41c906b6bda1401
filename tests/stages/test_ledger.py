"""The run folder: never overwritten, locked, and readable after a crash in the middle of a line."""

from __future__ import annotations

import threading

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages import ledger as module
from mmmoe.stages.found import tell_end
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec


@pytest.fixture(scope="module")
def spec():
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)


def test_a_second_run_gets_a_folder_of_its_own(spec, tmp_path):
    here = spec.model_copy(update={"runs": str(tmp_path)})
    names = [RunFolder.create(here).path.name for _ in range(3)]
    assert names == ["llava_mole_tiny", "llava_mole_tiny-2", "llava_mole_tiny-3"]


def test_runs_that_begin_at_the_same_moment_get_folders_of_their_own(spec, tmp_path, monkeypatch):
    """Both have looked for a free name, and found the same one, before either makes its folder."""
    here, meet, found = spec.model_copy(update={"runs": str(tmp_path)}), threading.Barrier(2), []
    looked = threading.local()
    free_name = module._free_name

    def look(parent, name):
        path = free_name(parent, name)
        if not hasattr(looked, "once"):
            looked.once = True
            meet.wait(10)
        return path

    def begin(seed):
        found.append((seed, RunFolder.create(here.model_copy(update={"seed": seed}))))

    monkeypatch.setattr(module, "_free_name", look)
    threads = [threading.Thread(target=begin, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({folder.path for _, folder in found}) == 2
    assert all(folder.spec().seed == seed for seed, folder in found)


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


def test_a_run_that_was_sent_to_nodes_goes_on_by_being_sent_there_again(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    assert folder.again() == f"mmmoe resume {folder.path}"
    folder.record("launched", way="nodes", world=2, option="--hostfile FILE")
    folder.record("resumed", overrides=[])
    assert folder.again() == f"mmmoe launch {folder.path} --hostfile FILE"


def test_only_one_process_at_a_time(spec, tmp_path):
    folder = RunFolder.create(spec, tmp_path / "run")
    with folder.lock(), pytest.raises(ValueError, match="in use"):
        folder.lock()
    folder.lock().close()


def test_what_is_no_run_folder_is_told_with_what_may_be_meant(spec, tmp_path):
    RunFolder.create(spec, tmp_path / "my_run")
    (tmp_path / "a.yaml").touch()
    meant = {"my_rnu": "did you mean .*my_run?", "a.yaml": "begins with `mmmoe run`", "zz": "there is none"}
    for name, said in meant.items():
        with pytest.raises(ValueError, match=said):
            RunFolder.open(tmp_path / name)


def test_a_ledger_that_cannot_be_read_takes_nothing_from_the_end(spec, tmp_path, monkeypatch, capsys):
    folder = RunFolder.create(spec, tmp_path / "run")

    def broken(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RunFolder, "events", broken)
    tell_end(folder, 5)
    assert f"status 5; go on with: mmmoe resume {folder.path}" in " ".join(capsys.readouterr().err.split())
