"""Experts belong to the base weights they were trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmmoe.config.load import load
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.spec import PretrainedLanguage
from mmmoe.models.weights import base_fingerprint
from mmmoe.paths import project_root
from mmmoe.stages import assembly
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec


def test_the_fingerprint_tells_two_trainings_of_one_architecture_apart(tmp_path):
    run = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)
    assert base_fingerprint(run.model.language) == ""  # fresh weights are a function of the seed
    found = set()
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        save_file({"w": torch.randn(40, 40)}, tmp_path / "model.safetensors")
        found.add(base_fingerprint(PretrainedLanguage(path=str(tmp_path))))
    assert len(found) == 2


def test_an_expert_of_other_base_weights_is_refused(monkeypatch):
    run = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)
    moe = MoESpec(sites=["language.*.mlp"], experts=["base", "align"])
    stage = run.stages[2].model_copy(update={"adapters": [moe]})
    start = Heritage(Path("align/final"), None, run.model, [], stage.template, 0)
    others = {"other weights": replace(start, base="fedcba9876543210"), "another seed": replace(start, seed=7)}
    folder = RunFolder(Path("runs/none"))
    for other in others.values():
        monkeypatch.setattr(Heritage, "read", classmethod(lambda cls, path, found=other: found))
        with pytest.raises(ValueError, match="was trained on other base weights than align/final"):
            assembly.read_parts(run, stage, folder, start)
    monkeypatch.setattr(Heritage, "read", classmethod(lambda cls, path: start))
    assert list(assembly.read_parts(run, stage, folder, start)) == ["align"]
