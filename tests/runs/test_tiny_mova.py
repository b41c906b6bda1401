"""A whole small MoVA run: stages, what moved, resuming, engines and processes whose images have different experts."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mova_project import make_mova_project
from small_project import losses, start

from mmmoe.engine.checkpoint import read
from mmmoe.engine.step_folders import all_steps
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.routing import ANSWER_TOKENS, with_routing
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.ledger import RunFolder

pytestmark = pytest.mark.slow
STAGES = ("align", "tune", "built", "named")
CUT_UP = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
LONGER = ["evaluation=null", *(f"stages.{stage}.training.steps=12" for stage in STAGES[1:])]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_mova_project(tmp_path_factory.mktemp("mova") / "project")


def started(project, name, *overrides):
    """Starts the project into folders of its own; only features are shared."""
    runs, cache = project.parent / "runs" / name, project.parent / "caches" / name
    return runs / "small", start("run", project, f"runs={runs}", f"cache={cache}", *overrides)


def looked(run, stage):
    """Returns of each step who looked at how many images."""
    lines = (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["vision"] for line in lines]


def finish(process):
    said = process.communicate(timeout=500)[0].decode()
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def run(project):
    run, process = started(project, "alone")
    finish(process)
    return run


@pytest.fixture(scope="module")
def longer(project):
    run, process = started(project, "longer", *LONGER)
    finish(process)
    return run


def test_every_stage_runs_and_the_exam_is_sat_with_predicted_experts(run):
    events = RunFolder.open(run).events()
    assert [event["stage"] for event in events if event["event"] == "stage_done"] == list(STAGES)
    assert events[-1]["event"] == "finished"
    for variant in ("trained", "blind", "untrained"):
        lines = (run / "evaluation" / variant / "shape.jsonl").read_text().splitlines()
        assert {len(json.loads(line)["routing"]) for line in lines} == {3}
    [told] = json.loads((run / "evaluation/routing.json").read_text())
    assert (told["benchmark"], told["n"]) == ("shape", 6)
    assert not list(run.glob("stages/*/quarantine.*.jsonl"))


def test_each_stage_moves_what_it_declares_and_no_expert(run):
    tensors = {stage: read(run / "stages" / stage / "final").tensors for stage in STAGES}
    parts = {stage: {name.split(".")[0] for name in found} for stage, found in tensors.items()}
    assert parts["align"] == {"connector", "tower"}
    assert parts["tune"] == parts["built"] == parts["named"] == {"connector", "tower", "language", "text"}

    def moved(before, after):
        common = tensors[before].keys() & tensors[after].keys()
        return {n.split(".")[0] for n in common if not torch.equal(tensors[before][n], tensors[after][n])}

    assert moved("align", "tune") == {"connector"}
    assert moved("tune", "built") == {"connector", "language"}
    old, new = tensors["built"], tensors["named"]
    fresh = new.keys() - old.keys()
    assert {name.split(".")[-3] for name in fresh} == {"q_proj", "v_proj"}
    assert all(new[name].any() for name in fresh)
    assert all(".blocks." in name for name in old if not torch.equal(old[name], new[name]))


def test_readers_of_experts_learn_from_images_routed_to_them_alone(run):
    """In align nobody is; in tune the images of colours, whose experts are two others, are seen in routing passes."""
    align, tune = (read(run / "stages" / stage / "final").tensors for stage in STAGES[:2])
    ways_out = [name for name in align if ".readers." in name and name.endswith("out_proj.weight")]
    assert len(ways_out) == 3
    assert not any(align[name].any() for name in ways_out), "as they were drawn"
    changed = {name for name in align if ".readers." in name and not torch.equal(align[name], tune[name])}
    assert {name.split(".readers.")[1].split(".")[0] for name in changed} == {"shape"}


@pytest.mark.parametrize("case", ["local", "zero2", "zero3"])
def test_processes_whose_images_have_different_experts_stay_in_step(project, run, case):
    """One sample at a time on two processes: most have other experts, a routing pass, or no image at all."""
    recomputed = "stages.tune.training.gradient_checkpointing=true"
    engine = {
        "local": ["engine.kind=local"],
        "zero2": ["engine.kind=deepspeed", "engine.zero=2"],
        "zero3": ["engine.kind=deepspeed", "engine.zero=3", CUT_UP, recomputed],
    }[case]
    small = [f"stages.{stage}.training.micro_batch=1" for stage in STAGES]
    spread, process = started(project, case, "engine.processes=2", "evaluation=null", *engine, *small)
    finish(process)
    for stage in STAGES:
        got, want = torch.tensor(losses(spread, stage)), torch.tensor(losses(run, stage))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=0)
        for ours, theirs in zip(looked(spread, stage), looked(run, stage), strict=True):
            assert ours.keys() == theirs.keys()
            for source, found in ours.items():
                gates = [torch.tensor(part.pop("gates", [])) for part in (found, theirs[source])]
                assert found == theirs[source]
                torch.testing.assert_close(*gates, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stage", ["tune", "built", "named"])
def test_a_killed_run_resumes_bit_for_bit(project, longer, stage):
    run, process = started(project, f"killed_{stage}", *LONGER)
    deadline = time.monotonic() + 400
    while len(all_steps(run / "stages" / stage / "checkpoints")) < 2:
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()  # the children ask the kernel to die with their parent
    process.communicate(timeout=60)
    assert stage not in RunFolder.open(run).done()
    finish(start("resume", run))
    begun = [e for e in RunFolder.open(run).events() if e["event"] == "stage_started" and e["stage"] == stage]
    assert begun[-1]["step"] >= 2
    for name in STAGES:
        assert losses(run, name) == losses(longer, name)
        expected, found = (read(folder / "stages" / name / "final").tensors for folder in (longer, run))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


@pytest.fixture(scope="module")
def again(project):
    run, process = started(project, "again", *LONGER)
    finish(process)
    return run


@pytest.mark.parametrize(("folder", "count"), [("routing_losses", 16), ("routing_answers", 6)])
def test_a_run_without_its_cache_hears_the_same_of_its_judges(project, again, longer, folder, count):
    """What they say does not depend on what was asked before: not on features kept, nor on questions encoded.

    Losses of two sources of two shards fill four columns, experts named for three sources one.
    """
    ours, theirs = (Path(project.parent / "caches" / name / folder) for name in ("again", "longer"))
    found = sorted(path.relative_to(ours) for path in ours.rglob("*.npy"))
    assert found == sorted(path.relative_to(theirs) for path in theirs.rglob("*.npy"))
    assert len(found) == count
    assert all((ours / path).read_bytes() == (theirs / path).read_bytes() for path in found)
    assert losses(again, "named") == losses(longer, "named")


def test_fine_tuning_leaves_the_routing_as_it_was(run):
    """The last stage changes answers and not one bit of what routing passes say."""
    subjects = []
    for stage in STAGES[2:]:
        model, heritage = rebuild(run / "stages" / stage / "final")
        subjects.append(subject_of(model, heritage, run / "nothing"))
    questions = load_questions(RunFolder.open(run).spec().evaluation.benchmarks[0]).questions
    prompt = subjects[0].guide.prompt
    passes = [replace(q, text=prompt(q.text), routing=None, choices=("A", "B, C", "none")) for q in questions]
    before, after = ((subject.score(passes), subject.generate(passes, ANSWER_TOKENS)) for subject in subjects)
    assert before == after
    routed = [with_routing(subject, questions, "predicted") for subject in subjects]
    assert routed[0] == routed[1]
    assert subjects[0].score(routed[0]) != subjects[1].score(routed[1])


def test_a_random_stage_and_a_stage_of_all_experts_run(project):
    overrides = ["evaluation=null", "stages.tune.routing={kind: random, most: 2}", "stages.built.routing={kind: all}"]
    finish(started(project, "others", *overrides)[1])
