"""What is left frozen and fresh comes back, what another base trained is refused, and a changed start is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from expert_project import MOE, make_expert_project
from small_project import start

from mmmoe.engine.checkpoint import read
from mmmoe.stages.handover import rebuild, tensors_of
from mmmoe.stages.status import USER_MISTAKE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The expert project without its evaluation."""
    path = make_expert_project(tmp_path_factory.mktemp("handover"))
    run = yaml.safe_load(path.read_text()) | {"evaluation": None}
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def run(project) -> Path:
    """A finished run whose last stage left its routers and the A of its experts' LoRA as they were drawn."""
    given = ["stages.moe.trains=['*.lora.b_EOR', '*.lora.b_EDR']", "stages.moe.adapters.0.balance={kind: none}"]
    process = start("run", project, *given)
    said = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, said
    return Path(yaml.safe_load(project.read_text())["runs"]) / "small"


def test_fresh_tensors_that_did_not_train_come_back(run):
    tensors = read(run / "stages/moe/final").tensors
    model, _ = rebuild(run / "stages/moe/final")
    own = tensors_of(model)
    adapters = [name for name in own if ".lora." in name or ".router." in name or name.endswith("weight_EOI")]
    assert set(adapters) <= set(tensors)
    assert any(name.endswith("router.weight") for name in adapters)
    for name in adapters:
        assert torch.equal(own[name], tensors[name]), name


def test_an_expert_that_did_not_start_here_is_refused(project, run, mmmoe, tmp_path):
    """The expert lacks what the stage that the mixture starts from trained: here a LoRA on attention."""
    attention = json.dumps([{"kind": "lora", "sites": ["language.*.self_attn.q_proj"], "rank": 2, "alpha": 4}])
    given = [
        f"stages.align.adapters={attention}",
        "stages.align.trains=['*.lora.*', 'connector.*', 'bounds.*']",
        f"stages.moe.adapters={json.dumps([MOE | {'experts': ['base', f'{run}/stages/shape_expert/final']}])}",
        "stages.moe.inherits={}",
    ]
    status, text = mmmoe("run", project, f"runs={tmp_path}", *given)
    said = " ".join(text.split())
    assert status == USER_MISTAKE, said
    assert "self_attn.q_proj.lora" in said
    assert "an expert's stage starts where this one does" in said


def test_routed_lora_in_an_experts_blocks_is_refused(project, mmmoe, tmp_path):
    routed = {"kind": "experts", "level": "linear", "sites": ["language.*.mlp.*_proj"], "experts": 2, "rank": 2,
              "alpha": 4, "router": {"selection": "topk", "k": 2}, "balance": {"kind": "none"}}  # fmt: skip
    given = [
        f"stages.shape_expert.adapters={json.dumps([routed])}",
        "stages.shape_expert.trains=['*.experts.*', '*.router.*', 'connector.*']",
    ]
    status, text = mmmoe("run", project, f"runs={tmp_path}", *given)
    assert status == USER_MISTAKE, text
    assert "which is no feed-forward block with plain LoRA" in " ".join(text.split())


def test_a_stage_does_not_go_on_from_another_start(project, run, mmmoe, tmp_path):
    """A checkpoint of the last stage, and an expert that was trained anew in the meantime."""
    copy = tmp_path / "small"
    shutil.copytree(run, copy)
    events = [json.loads(line) for line in (copy / "ledger.jsonl").read_text().splitlines()]
    kept = [e for e in events if e.get("stage") != "moe" and e["event"] not in ("finished", "evaluated")]
    (copy / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))
    final, steps = copy / "stages/moe/final", copy / "stages/moe/checkpoints"
    steps.mkdir()
    final.rename(steps / "step_000002")
    other = "stages.moe.adapters.0.experts=[base, shape_expert, shape_expert, colour_expert]"
    status, text = mmmoe("resume", copy, other)
    said = " ".join(text.split())
    assert status == USER_MISTAKE, said
    assert "the adapters' declaration changed since step" in said
