"""The start under a launcher: the first process prepares the folder, and all of them hear what is wrong with it."""

from __future__ import annotations

import shlex

import pytest

from mmmoe import dist, env
from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.report import page
from mmmoe.stages import launched as launcher
from mmmoe.stages import start as module
from mmmoe.stages.ledger import STOP_FILE, RunFolder
from mmmoe.stages.spec import RunSpec


@pytest.fixture
def spec():
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)


@pytest.fixture
def folder(spec, tmp_path):
    return RunFolder.create(spec, tmp_path / "run")


@pytest.fixture
def launched(monkeypatch):
    """Makes this process one of two under a launcher; returns what the run was carried out with."""
    carried, said = [], []

    def as_on_first(value):
        if env.rank() == 0:
            said.append(value)
        return said[-1]

    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "start", lambda *seconds: None)
    monkeypatch.setattr(dist, "as_on_first", as_on_first)
    monkeypatch.setattr(launcher, "preflight", lambda spec: None)
    monkeypatch.setattr(launcher, "write_report", lambda path: path / "report.html")
    monkeypatch.setattr(launcher, "run_all", lambda spec, folder, again: carried.append(folder.path))
    return carried


def test_a_folder_in_use_refuses_every_process_alike(folder, launched, monkeypatch):
    with folder.lock():
        with pytest.raises(ValueError, match="in use by another run"):
            module.start_again(folder.path, [])
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(ValueError, match="in use by another run"):
            module.start_again(folder.path, [])
    assert launched == []


def test_only_the_first_process_holds_the_folder_and_writes_the_ledger(folder, launched, monkeypatch):
    (folder.path / STOP_FILE).touch()
    assert module.start_again(folder.path, ["seed=3"]) == 0
    assert not (folder.path / STOP_FILE).exists()
    monkeypatch.setenv("RANK", "1")
    assert module.start_again(folder.path, ["seed=3"]) == 0
    assert launched == [folder.path] * 2
    assert [(e["event"], e.get("overrides")) for e in folder.events()] == [("created", None), ("resumed", ["seed=3"])]
    folder.lock().close()


def test_a_process_that_was_given_another_folder_than_the_first_refuses(folder, spec, tmp_path, launched, monkeypatch):
    other = RunFolder.create(spec, tmp_path / "other")
    assert module.start_again(folder.path, []) == 0
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match=r"the first process goes on with .*run and this one with .*other"):
        module.start_again(other.path, [])
    assert launched == [folder.path]


def test_a_new_run_has_one_folder(spec, tmp_path, launched, monkeypatch):
    here = spec.model_copy(update={"runs": str(tmp_path)})
    assert module.start_new(here) == 0
    monkeypatch.setenv("RANK", "1")
    assert module.start_new(here) == 0
    assert launched == [tmp_path / "llava_mole_tiny"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["llava_mole_tiny"]


def test_the_command_that_goes_on_has_the_overrides(folder, monkeypatch, capfd):
    monkeypatch.setattr(module, "launch", lambda engine, arguments, logs: 1)
    overrides = ["stages.align.training.steps=200", "name=a b"]
    assert module.carry_out(folder.spec(), folder, overrides) == 1
    command = shlex.join(["mmmoe", "resume", str(folder.path), *overrides])
    assert f"go on with: {command}" in capfd.readouterr().err
    assert folder.again() == command


def test_a_local_run_that_dies_is_started_again_and_reported_once(folder, spec, monkeypatch):
    statuses, reports = [137, 0], []
    monkeypatch.setattr(module, "launch", lambda engine, arguments, logs: statuses.pop(0))
    monkeypatch.setattr(page, "write_report", lambda path: reports.append(path))
    engine = spec.engine.model_copy(update={"restarts": 1})
    assert module.carry_out(spec.model_copy(update={"engine": engine}), folder) == 0
    assert reports == [folder.path]
    assert [event["event"] for event in folder.events()] == ["created", "restarted"]
