"""A stage trains the tower: what its files hold, what the next stage starts from, which engines can do it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import yaml
from small_project import configuration, losses, start

from mmmoe.engine.checkpoint import read
from mmmoe.engine.step_folders import all_steps
from mmmoe.models.build import build_model
from mmmoe.models.spec import model_spec
from mmmoe.stages.handover import rebuild

CLIP = {
    "kind": "open_clip", "name": "tiny", "path": None, "layer": -2,
    "config": {
        "embed_dim": 8, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3}
    },
}  # fmt: skip
CUT_UP = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
NO_DROPOUT = [f"stages.mole.adapters.{n}.dropout=0" for n in (0, 1)]
CASES = {
    "local": ["engine.kind=local"],
    **{f"zero{zero}": ["engine.kind=deepspeed", f"engine.zero={zero}"] for zero in (1, 2)},
    "zero3": ["engine.kind=deepspeed", "engine.zero=3", CUT_UP],
}


@pytest.fixture(scope="module")
def declared(project, tmp_path_factory) -> Path:
    """Writes the small project with a CLIP that the second stage trains, and returns the file."""
    folder = tmp_path_factory.mktemp("trained")
    spec = configuration(project.parent)
    spec["model"]["tower"] = CLIP
    align = spec["stages"][1]
    align |= {"trains": ["tower.*", "connector.*", "bounds.*"], "encode_once": False}
    # Some micro-batches then hold no picture, on one process or on both.
    align["mixture"]["sources"].append({"name": "text", "shards": str(project.parent / "shards/text"), "weight": 3})
    align["training"] |= {"micro_batch": 1, "gradient_checkpointing": True}
    spec["evaluation"] = None
    spec["runs"], spec["cache"] = str(folder / "runs"), str(folder / "cache")
    (folder / "run.yaml").write_text(yaml.safe_dump(spec))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def run(declared) -> Path:
    """One process, plain torch."""
    return finished(declared, "alone")


def finished(declared: Path, name: str, *overrides: str) -> Path:
    runs = declared.parent / "runs" / name
    process = start("run", declared, f"runs={runs}", *NO_DROPOUT, *overrides)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    return runs / "small"


def tower_of(run: Path, stage: str) -> dict[str, torch.Tensor]:
    tensors = read(run / "stages" / stage / "final").tensors
    return {name: tensor for name, tensor in tensors.items() if name.startswith("tower.")}


def test_finals_hold_the_trained_tower_and_later_stages_start_from_it(run):
    align, mole = (tower_of(run, stage) for stage in ("align", "mole"))
    assert tower_of(run, "language") == {}
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    fresh = build_model(model_spec(spec["model"]), spec["seed"])
    base = {f"tower.{name}": parameter.detach() for name, parameter in fresh.tower.named_parameters()}
    assert align.keys() == mole.keys() == base.keys()
    taken = {name for name in base if not any(part in name for part in (".resblocks.2.", ".ln_post.", ".proj"))}
    assert all(not torch.equal(align[name], base[name]) for name in taken)
    assert all(torch.equal(align[name], base[name]) for name in base.keys() - taken)  # above the layer that is taken
    assert all(torch.equal(align[name], mole[name]) for name in base)
    model, _ = rebuild(run / "stages/mole/final")
    assert all(torch.equal(model.state_dict()[name], align[name]) for name in base)
    assert not model.tower.is_trained
    # Features kept on disk, by stages and evaluations, are those of this tower and no other.
    assert model.tower.key.startswith(f"{fresh.tower.key}-trained-")
    assert model.tower.key == rebuild(run / "stages/align/final")[0].tower.key
    assert fresh.tower.key == rebuild(run / "stages/language/final")[0].tower.key


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_tower_as_one_does(declared, run, case):
    """One sample at a time: in most steps one process has a picture where the other has none."""
    found = finished(declared, case, "engine.processes=2", *CASES[case])
    for stage in ("align", "mole"):
        pair = (torch.tensor(losses(one, stage)) for one in (found, run))
        torch.testing.assert_close(*pair, rtol=2e-4, atol=0)
    for name, tensor in tower_of(run, "align").items():
        torch.testing.assert_close(tower_of(found, "align")[name], tensor, rtol=0, atol=5e-4)


@pytest.mark.slow
def test_resume_goes_on_with_the_trained_tower(declared):
    longer = "stages.align.training.steps=12"
    whole = finished(declared, "longer", longer)
    run = declared.parent / "runs/killed/small"
    process = start("run", declared, f"runs={run.parent}", *NO_DROPOUT, longer)
    deadline = time.monotonic() + 240
    while not all_steps(run / "stages/align/checkpoints"):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # the children ask the kernel to die with their parent
    process.communicate(timeout=60)
    held = read(all_steps(run / "stages/align/checkpoints")[-1])
    names = tower_of(whole, "align").keys()
    assert {name for name in held.tensors if name.startswith("tower.")} == names
    assert {f"exp_avg.{name}" for name in names} <= held.moments.keys()
    again = start("resume", run)
    said = again.communicate(timeout=300)[0].decode()
    assert again.returncode == 0, said
    assert "done: language;" in said
    for stage in ("align", "mole"):
        assert losses(run, stage) == losses(whole, stage)
        assert all(torch.equal(tower_of(run, stage)[name], tower_of(whole, stage)[name]) for name in names)


def test_encode_once_and_a_trained_tower_are_refused_before_anything_is_read(declared, mmmoe):
    said_of = "stages.align.encode_once: every tower trains, so features change with every step"
    status, said = mmmoe("run", declared, "stages.align.encode_once=true")
    assert (status, said_of in said) == (2, True), said
    status, said = mmmoe("plan", declared, "stages.align.encode_once=true")
    assert said_of in said
    status, said = mmmoe("plan", declared)
    assert "nothing is missing" in said, said
