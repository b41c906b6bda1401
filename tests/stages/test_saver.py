"""What a stage goes on from: checkpoints of the same start, of no later step, whatever keys a declaration got since."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from mmmoe.config.load import load
from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import CheckpointState
from mmmoe.paths import project_root
from mmmoe.stages.handover import StageModel
from mmmoe.stages.run import _is_finished
from mmmoe.stages.saver import Origin, StageSaver
from mmmoe.stages.spec import RunSpec


class Held:
    """An engine with one weight, which is its step."""

    updates = 0

    def tensors(self):
        return {"w": torch.full((4,), float(self.updates))}

    def optimizer_tensors(self):
        return {}

    def load(self, tensors, moments, updates):
        self.updates = updates


@pytest.fixture
def origin():
    run = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)
    stage = run.stages[-1]
    return Origin(run, stage, StageModel(None, list(stage.adapters), {}, frozenset()), None, {})


def saver_of(origin: Origin, folder: Path, step: int = 0) -> StageSaver:
    engine = Held()
    engine.updates = step
    return StageSaver(origin, engine, folder)


def save(saver: StageSaver, step: int) -> None:
    saver.save(step, {})
    saver.wait()


def of_before(declared):
    """Returns a declaration as it was stored before three of its keys existed, which have defaults."""
    declared = copy.deepcopy(declared)
    del declared["model"]["tower"]["stride16"]
    del declared["adapters"][0]["rslora"]
    del declared["stage"]["training"]["faults"]
    return declared


def test_keys_that_came_later_are_no_change(origin, tmp_path):
    saver = saver_of(origin, tmp_path, 7)
    saver._declared = of_before(saver._declared)
    save(saver, 7)
    assert saver_of(origin, tmp_path).restore(20) == 7


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [("model", "image_bounds", False), ("model", "gone", 1), ("adapters", "rank", 8), ("adapters", "gone", 1)],
)
def test_another_declaration_is_a_change(origin, tmp_path, place, key, value):
    saver = saver_of(origin, tmp_path, 7)
    declared = of_before(saver._declared)
    (declared["model"] if place == "model" else declared["adapters"][0])[key] = value
    saver._declared = declared
    save(saver, 7)
    with pytest.raises(ValueError, match=f"cannot go on from .*: the {place}.* declaration changed since step 7"):
        saver_of(origin, tmp_path).restore(20)


def test_a_finished_stage_is_known_again_by_a_declaration_that_got_keys_since(origin, tmp_path):
    old = of_before(origin.declared())
    checkpoint.write_at(tmp_path / "old", CheckpointState(7, old, extra={"parts": {}}), {}, {})
    assert _is_finished(origin.stage, tmp_path / "old", None, {})
    old["stage"]["training"]["batch"] += 1
    checkpoint.write_at(tmp_path / "other", CheckpointState(7, old, extra={"parts": {}}), {}, {})
    assert not _is_finished(origin.stage, tmp_path / "other", None, {})


def test_weights_of_a_later_step_are_not_called_the_end(origin, tmp_path):
    save(saver_of(origin, tmp_path, 150), 150)
    assert saver_of(origin, tmp_path).restore(150) == 150
    engine = Held()
    with pytest.raises(ValueError, match="trained for 150 steps, and its declaration asks for 100 now") as told:
        StageSaver(origin, engine, tmp_path).restore(100)
    assert engine.updates == 0
    cure = next(word for word in str(told.value).rstrip(";").split() if word.startswith("stages.")).rstrip(";")
    spec = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, [cure])
    assert spec.stages[-1].training.steps == 150
