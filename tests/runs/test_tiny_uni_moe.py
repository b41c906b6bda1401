"""A whole small Uni-MoE run on four kinds of media: stages, what moved, evaluation, engines, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_project import losses, start
from uni_project import QUESTIONS, make_uni_project

from mmmoe.engine.checkpoint import read
from mmmoe.evaluation.scores import read_scores
from mmmoe.stages.ledger import RunFolder

pytestmark = pytest.mark.slow
CUT_UP = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"


@pytest.fixture(scope="module")
def uni(tmp_path_factory) -> Path:
    return make_uni_project(tmp_path_factory.mktemp("uni"))


def finished(project: Path, name: str, *overrides: str) -> tuple[Path, str]:
    """Runs the project into a folder of its own; returns it and what was said."""
    runs = project.parent / "runs" / name
    process = start("run", project, f"runs={runs}", *overrides)
    said = process.communicate(timeout=400)[0].decode()
    assert process.returncode == 0, said
    return runs / "small", said


@pytest.fixture(scope="module")
def run(uni) -> Path:
    return finished(uni, "alone")[0]


def test_every_stage_runs_and_every_kind_is_asked(run):
    events = RunFolder.open(run).events()
    done = [event["stage"] for event in events if event["event"] == "stage_done"]
    assert done == ["align_seen", "align_heard", "expert_seen", "expert_heard", "moe"]
    assert events[-1]["event"] == "finished"
    scores = {row.benchmark for row in read_scores(run / "evaluation/scores.json")}
    assert scores == set(QUESTIONS)


def test_load_and_loss_are_told_by_kind(run):
    rows = [json.loads(line) for line in (run / "stages/moe/metrics.jsonl").read_text().splitlines()]
    seen = {source for row in rows for source in row["losses"]}
    assert seen == set(QUESTIONS)
    for row in rows:
        for source, loads in row["load"].items():
            assert set(loads) <= {"text", source}, "a source's samples have text and their own kind"
            assert len(loads["text"]["0"]) == 4


def test_in_the_last_stage_moves_what_was_declared_and_nothing_else(run):
    end, start_of = read(run / "stages/moe/final").tensors, read(run / "stages/align_heard/final").tensors
    for expert, connector in (("expert_seen", "connectors.image."), ("expert_heard", "connectors.speech.")):
        tensors = read(run / "stages" / expert / "final").tensors
        start_of |= {name: tensor for name, tensor in tensors.items() if name.startswith(connector)}
    moved = {name for name in end if name in start_of and not torch.equal(end[name], start_of[name])}
    projectors = {"connectors.speech.projector", "connectors.audio.projector"}
    assert {name.rsplit(".", 1)[0] for name in moved if not name.startswith("connectors.image")} == projectors
    assert all(name in moved for name in end if name.startswith("connectors.image.layers"))
    assert not any(name.startswith("towers.") for name in end)  # frozen in every stage, so in no checkpoint
    fresh = {name for name in end if name not in start_of}
    assert all(any(part in name for part in (".lora.", ".router.", ".weight_EOI")) for name in fresh)
    routers = [name for name in fresh if name.endswith("router.weight")]
    assert len(routers) == 2


@pytest.mark.parametrize("case", ["zero1", "zero2", "zero3", "spread"])
def test_processes_that_see_other_kinds_stay_in_step(uni, run, case):
    """One sample at a time on two processes: in most micro-batches they have media of different kinds."""
    engine = {
        "zero1": ["engine.zero=1"],
        "zero2": ["engine.zero=2"],
        "zero3": ["engine.zero=3", CUT_UP],
        "spread": ["engine.zero=2", "engine.ep_size=2", "stages.moe.training.gradient_checkpointing=true"],
    }[case]
    overrides = ["engine.kind=deepspeed", "engine.processes=2", "evaluation=null", "stages.moe.training.micro_batch=1"]
    spread = finished(uni, case, *overrides, *engine)[0]
    got, want = torch.tensor(losses(spread, "moe")), torch.tensor(losses(run, "moe"))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0)


def test_files_that_cannot_be_read_are_set_aside_and_the_run_goes_on(tmp_path):
    """A truncated video, an empty recording and one that is no sound, packed before they were damaged."""
    project = make_uni_project(tmp_path / "damaged")
    damage(project.parent)
    run_yaml = yaml.safe_load(project.read_text())
    run_yaml["stages"] = run_yaml["stages"][:2]
    run_yaml["evaluation"] = None
    project.write_text(yaml.safe_dump(run_yaml))
    run, _ = finished(project, "damaged")
    aside = [json.loads(line) for path in sorted(run.glob("stages/*/quarantine.*.jsonl")) for line in path.open()]
    assert {row["source"] for row in aside} == {"video", "speech", "audio"}
    assert all(row["reason"] for row in aside)


def damage(folder: Path) -> None:
    """Overwrites the content of the first members of three shards, in place, so that their index still fits."""
    from mmmoe.data.shards import ShardSet

    for kind, content in (("video", None), ("speech", b"\0"), ("audio", b"not a sound")):
        shards = ShardSet(folder / "shards" / kind)
        for index in range(4):
            shard, local = shards.locate(index)
            entry = shards.shards[shard].entry(local)
            offset, size = next(place for ending, place in entry.members.items() if ending != "json")
            with shards.shards[shard].path.open("r+b") as stream:
                stream.seek(offset + (size // 2 if content is None else 0))
                rest = size - size // 2 if content is None else size
                stream.write(((content or b"\0") * rest)[:rest])
