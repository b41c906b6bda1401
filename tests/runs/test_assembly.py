"""Dense experts trained one by one, merged, and assembled into a sparse mixture, in one process and spread over two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from expert_project import make_expert_project
from small_project import losses, start
from torch import nn

from mmmoe.engine.checkpoint import read
from mmmoe.models.lora.layer import LoRALinear
from mmmoe.models.moe.layer import SparseFFN
from mmmoe.stages.handover import rebuild
from mmmoe.stages.status import USER_MISTAKE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return make_expert_project(tmp_path_factory.mktemp("experts"))


def finished(project, name, *overrides) -> Path:
    """Runs the project into a folder of its own and returns it."""
    runs = project.parent / "runs" / name
    process = start("run", project, f"runs={runs}", *overrides)
    said = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, said
    return runs / "small"


@pytest.fixture(scope="module")
def alone(experts):
    return finished(experts, "alone")


def block(model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(f"language.model.layers.{layer}.mlp")


def test_the_mixture_holds_the_experts_as_their_stages_left_them(alone):
    """Each expert of the sparse block gives what its stage's dense block, with LoRA, gives."""
    mixture, _ = rebuild(alone / "stages/moe/final")
    sparse = block(mixture, 0)
    assert isinstance(sparse, SparseFFN)
    assert not isinstance(block(mixture, 1), SparseFFN)  # interval
    x = torch.randn(5, 32)
    for number, name in enumerate(("align", "shape_expert", "colour_expert", "shape_expert")):
        dense, _ = rebuild(alone / "stages" / name / "final")
        if name != "align":
            assert isinstance(block(dense, 0).gate_proj, LoRALinear)
        for p in ("gate_proj", "up_proj"):
            weight = getattr(sparse.experts, p).weight_EOI[number]
            torch.testing.assert_close(x @ weight.T, getattr(block(dense, 0), p)(x), atol=1e-6, rtol=1e-5)
    first = sparse.experts.gate_proj.weight_EOI
    assert torch.equal(first[1], first[3])
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[1], first[2])


def test_what_moved_in_the_mixture_is_what_was_declared(alone):
    tensors = read(alone / "stages/moe/final").tensors
    expert = read(alone / "stages/colour_expert/final").tensors
    assert any("mlp.router.weight" in name for name in tensors)
    assert any("mlp.experts.down_proj.lora.b_EOR" in name for name in tensors)
    # The connector went on from the run that trained it, not from the stage this one starts from.
    start_line = json.loads((alone / "stages/moe/metrics.jsonl").read_text().splitlines()[0])
    assert set(start_line["losses"]) == {"shapes", "colours"}
    for name in (n for n in tensors if n.startswith("connector.")):
        near = (tensors[name] - expert[name]).abs().max()
        far = (tensors[name] - read(alone / "stages/align/final").tensors[name]).abs().max()
        assert near < far, name


def test_two_processes_with_spread_experts_train_and_leave_the_same(alone, experts):
    engine = ["engine.processes=2", "engine.ep_size=2", "evaluation=null"]
    spread = finished(experts, "spread", *engine, "engine.kind=deepspeed", "engine.zero=2")
    torch.testing.assert_close(
        torch.tensor(losses(spread, "moe")), torch.tensor(losses(alone, "moe")), rtol=2e-4, atol=0
    )
    row = json.loads((spread / "stages/moe/metrics.jsonl").read_text().splitlines()[-1])
    assert sum(row["expert_bytes"].values()) > 0
    ours, theirs = read(spread / "stages/moe/final").tensors, read(alone / "stages/moe/final").tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-3, rtol=0)
    stacked = "language.model.layers.0.mlp.experts.up_proj.weight_EOI"
    torch.testing.assert_close(ours[stacked], theirs[stacked], atol=1e-3, rtol=0)


def test_metrics_tell_the_load_of_whole_experts(alone):
    row = json.loads((alone / "stages/moe/metrics.jsonl").read_text().splitlines()[-1])
    assert len(row["balance"]) == 1  # one sparse layer
    load = row["load"]["shapes"]["image"]["0"]
    assert len(load) == 4
    # Two choices at each of an image's three positions: its one patch and the vectors around it.
    assert sum(load) > 0
    assert sum(load) % 6 == 0


def test_identical_experts_leave_the_first_loss_as_it_was(alone, experts):
    """Upcycling by copy with renormalised weights changes nothing before the first update."""
    moe = yaml.safe_load(experts.read_text())["stages"][4]
    dense = moe["adapters"][1:]
    curves = []
    for name, adapters in (("copies", [moe["adapters"][0] | {"experts": ["base"] * 4}, *dense]), ("dense", dense)):
        given = [f"stages.moe.adapters={json.dumps(adapters)}", "evaluation=null"]
        if name == "dense":
            given.append("stages.moe.trains=['*.lora.*', 'connector.*']")
        curves.append(
            json.loads((finished(experts, name, *given) / "stages/moe/metrics.jsonl").read_text().split("\n")[0])
        )
    copies, plain = curves
    assert copies["losses"] == pytest.approx(plain["losses"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["stages.moe.adapters.0.experts=[base, nowhere]"],
            "takes parts of 'nowhere', which is no stage of this run and no folder",
        ),
        (["stages.moe.inherits={'connector.*': moe}"], "takes parts of 'moe', which comes later in this run"),
        (["engine.ep_size=2"], "engine.ep_size: 2 must divide the number of processes, 1"),
        (["engine.ep_size=3", "engine.processes=3"], "engine.ep_size: 3 must divide the number of experts, 4"),
        (["engine.ep_size=2", "engine.kind=deepspeed", "engine.zero=3"], "use zero 0, 1 or 2"),
        (["stages.moe.adapters.0.layers=[7]"], "layers [7]: the sites are in layers 0 to 1"),
    ],
)
def test_mistakes_are_told_before_a_weight_is_read(experts, mmmoe, overrides, said):
    status, text = mmmoe("run", experts, *overrides)
    assert status == USER_MISTAKE, text
    assert said in " ".join(text.split())


def test_an_expert_that_is_none_is_refused(alone, experts, mmmoe, tmp_path):
    """Another model's, and one whose stage trained more than feed-forward blocks."""
    given = f"stages.moe.adapters.0.experts=[base, {alone}/stages/{{}}/final]"
    status, text = mmmoe("run", experts, given.format("shape_expert"), "model.max_positions=100")
    assert status == USER_MISTAKE
    assert "max_positions: None there, 100 here" in " ".join(text.split())
    status, text = mmmoe("run", experts, f"runs={tmp_path}", given.format("moe"), "evaluation=null")
    assert status == USER_MISTAKE
    said = " ".join(text.split())
    assert "which is no feed-forward block with plain LoRA; an expert's stage starts where" in said


def test_a_pattern_that_takes_nothing_over_is_refused(experts, mmmoe, tmp_path):
    given = "stages.moe.inherits={'conector.*': colour_expert}"
    status, text = mmmoe("run", experts, f"runs={tmp_path}", given, "evaluation=null")
    assert status == USER_MISTAKE
    assert "'conector.*' matches no tensor of 'colour_expert', the nearest names are 'connector." in " ".join(
        text.split()
    )
