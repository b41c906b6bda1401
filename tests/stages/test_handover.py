"""What a stage inherits must be what the stages before it declare."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmmoe.config.load import load
from mmmoe.models.lora.spec import LoRASpec
from mmmoe.paths import project_root
from mmmoe.stages.handover import adapters_in, build_stage_model
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.spec import RunSpec


@pytest.fixture(scope="module")
def run():
    return load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)


def heritage(run, adapters):
    align = run.stages[1]
    return Heritage(Path("runs/old/stages/align/final"), None, run.model, adapters, align.template, run.seed)


def test_a_stage_holds_its_ancestors_adapters_first(run):
    kinds = [(adapter.kind, adapter.sites[0]) for adapter in adapters_in(run, run.stages[2])]
    assert kinds == [
        ("lora", "language.lm_head"),
        ("lora", "language.*.self_attn.[qkvo]_proj"),
        ("experts", "language.*.mlp"),
    ]
    assert adapters_in(run, run.stages[0]) == []


@pytest.mark.parametrize("trained", [[], [LoRASpec(kind="lora", sites=["language.lm_head"], rank=8, alpha=128)]])
def test_a_parent_with_other_adapters_than_declared_is_refused(run, trained):
    with pytest.raises(ValueError, match=r"align/final was trained with other adapters.*'mole'.*start a new run"):
        build_stage_model(run, run.stages[2], heritage(run, trained))
