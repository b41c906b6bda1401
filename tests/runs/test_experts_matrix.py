"""Experts on linear layers and as whole blocks train alike on every ZeRO stage, cut into pieces, and recomputed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from small_project import losses, start

pytestmark = pytest.mark.slow

LEVELS = {
    "linear": "level: linear, sites: [language.*.q_proj, language.*.mlp.*_proj]",
    "ffn": "level: ffn, sites: [language.*.mlp]",
}
ROUTING = (
    "experts: [2, 3], rank: 2, alpha: 4, router: {selection: topk, k: 2}, "
    "balance: {kind: per_layer, weight: 0.01, z_weight: 0.001}"
)
CUT_UP = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
CASES = {
    "zero1": ["engine.kind=deepspeed", "engine.zero=1", "engine.processes=2"],
    "zero2": ["engine.kind=deepspeed", "engine.zero=2", "engine.processes=2"],
    "zero3": ["engine.kind=deepspeed", "engine.zero=3", "engine.processes=2", CUT_UP],
    "checkpointing": ["stages.mole.training.gradient_checkpointing=true"],
    "zero3 and checkpointing": [
        "engine.kind=deepspeed", "engine.zero=3", "engine.processes=2", CUT_UP,
        "stages.mole.training.gradient_checkpointing=true",
    ],
}  # fmt: skip
PLAIN: dict[str, torch.Tensor] = {}


def run(project, level, name, overrides):
    """Returns the losses of the stage with experts; attention has none where they are on linear layers."""
    runs = Path(yaml.safe_load(project.read_text())["runs"]).with_name(f"{level} {name}")
    adapters = f"stages.mole.adapters=[{{kind: experts, {LEVELS[level]}, {ROUTING}}}]"
    trains = "stages.mole.trains=['*.experts.*', '*.router.*', 'connector.*', 'bounds.*']"
    process = start("run", project, f"runs={runs}", "evaluation=null", adapters, trains, *overrides)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    return torch.tensor(losses(runs / "small", "mole"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("level", LEVELS)
def test_losses_agree(project, level, case):
    if level not in PLAIN:
        PLAIN[level] = run(project, level, "plain torch", [])
    torch.testing.assert_close(run(project, level, case, CASES[case]), PLAIN[level], rtol=2e-4, atol=0)


@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_runs_and_stays_near(project, level):
    if level not in PLAIN:
        PLAIN[level] = run(project, level, "plain torch", [])
    low = run(project, level, "bf16", ["engine.precision=bf16", "engine.kind=deepspeed", "engine.zero=2"])
    torch.testing.assert_close(low, PLAIN[level], rtol=2e-2, atol=0)
