"""What is told when a run goes on: stages, step, number of processes, and what overrides changed."""

from __future__ import annotations

import pytest

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages.found import changes, tell_found
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec


@pytest.fixture
def folder(tmp_path):
    spec = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)
    return RunFolder.create(spec, tmp_path / "run")


def told(folder, world=1, overrides=()):
    return list(tell_found(folder, folder.spec(list(overrides)), world))


def test_a_run_that_has_done_nothing(folder):
    names = [stage.name for stage in folder.spec().stages]
    assert told(folder) == [
        f"{folder.path}: done: nothing; to do: {', '.join(names)}",
        f"begins with stage {names[0]}",
    ]


def test_the_step_of_the_newest_checkpoint_and_the_processes_are_told(folder):
    first, second = (stage.name for stage in folder.spec().stages[:2])
    folder.record("stage_done", stage=first)
    folder.record("stage_started", stage=second, step=0, steps=60, world=2)
    for step in (20, 40):
        (folder.stage(second) / f"checkpoints/step_{step:06d}").mkdir(parents=True)
    lines, steps = told(folder, world=1), folder.spec().stages[1].training.steps
    assert f"done: {first}; to do: {second}" in lines[0]
    assert lines[1] == f"goes on in stage {second} after step 40 of {steps}, if its newest checkpoint is sound"
    assert lines[2].startswith("2 processes before, 1 now")
    assert len(told(folder, world=2)) == len(told(folder, world=None)) == 2


def test_a_run_whose_stages_are_all_done(folder):
    for stage in folder.spec().stages:
        folder.record("stage_done", stage=stage.name)
    assert told(folder) == [
        f"{folder.path}: done: {', '.join(s.name for s in folder.spec().stages)}; to do: evaluation and report"
    ]


def test_what_overrides_change_is_told_by_name(folder):
    name = folder.spec().stages[0].name
    lines = told(folder, overrides=[f"stages.{name}.training.batch=4096", "engine.kind=local"])
    assert any(line.startswith(f"changed: stages.{name}.training.batch: ") for line in lines)
    assert any(line.startswith("changed: engine.kind: ") and line.endswith("-> local") for line in lines)
    assert sum(line.startswith("changed") for line in lines) == 2


def test_changes_are_those_since_the_last_attempt(folder):
    steps = [f"stages.{folder.spec().stages[0].name}.training.steps=200"]
    folder.record("resumed", overrides=["engine.kind=local"])
    folder.record("resumed", overrides=steps)
    folder.record("launched", overrides=[])
    assert not any(line.startswith("changed") for line in told(folder, overrides=steps))
    before = folder.spec().stages[0].training.steps
    assert f"changed: {steps[0].partition('=')[0]}: 200 -> {before}" in told(folder)


def test_overrides_that_name_a_file_that_is_gone_do_not_hinder(folder, tmp_path):
    folder.record("resumed", overrides=[f"evaluation={{base: {tmp_path / 'gone.yaml'}}}"])
    assert not any(line.startswith("changed") for line in told(folder))


def test_lists_of_another_length_are_told_whole():
    assert list(changes({"a": [1, 2]}, {"a": [1]})) == ["changed: a: [1, 2] -> [1]"]
    assert list(changes({"a": None}, {"a": {"b": 1}})) == ["changed: a: None -> {'b': 1}"]
    assert list(changes({"a": [1, 2]}, {"a": [1, 2]})) == []


def test_what_changes_nothing_any_more_is_told_so(folder):
    first = folder.spec().stages[0].name
    folder.record("stage_done", stage=first)
    (line,) = [line for line in told(folder, overrides=[f"stages.{first}.training.batch=4096"]) if "changed" in line]
    assert line.endswith(f"-> 4096 (no effect: stage {first} is done)")


def test_of_a_finished_run_only_the_report_is_left(folder):
    for stage in folder.spec().stages:
        folder.record("stage_done", stage=stage.name)
    folder.record("finished")
    assert told(folder)[0].endswith("; to do: the report")


def test_a_stage_that_begun_without_a_checkpoint_is_told(folder):
    name = folder.spec().stages[0].name
    folder.record("stage_started", stage=name, step=0, steps=60, world=1)
    assert told(folder)[1] == f"goes on in stage {name} from its start: it has no checkpoint"
