"""A whole small TextHarmony run: stages, what moved, drawing, resuming with the same noise, two processes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from harmony_project import HEIGHT, WIDTH, make_harmony_project
from PIL import Image
from small_project import losses, start

from mmmoe.config.load import load
from mmmoe.engine.checkpoint import read
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.preflight import problems
from mmmoe.stages.run import run_all
from mmmoe.stages.saver import StageSaver
from mmmoe.stages.spec import RunSpec

pytestmark = pytest.mark.slow
STAGES = ("pretrain", "tune")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_harmony_project(tmp_path_factory.mktemp("harmony") / "project")


def made(project, name, *overrides):
    """Returns the declaration of a run with folders of its own, and its folder."""
    spec = load(project, RunSpec, [*folders(project, name), *overrides])
    return spec, RunFolder.create(spec)


def folders(project, name):
    return [f"runs={project.parent / 'runs' / name}", f"cache={project.parent / 'caches' / name}"]


@pytest.fixture(scope="module")
def run(project):
    """The finished run of one process, this one."""
    spec, folder = made(project, "alone")
    assert list(problems(spec)) == []
    run_all(spec, folder)
    return folder.path


def metrics(run, stage):
    return [json.loads(line) for line in (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


def test_both_stages_run_and_the_exam_is_drawn(run):
    events = RunFolder.open(run).events()
    assert [event["stage"] for event in events if event["event"] == "stage_done"] == list(STAGES)
    assert events[-1]["event"] == "finished"
    assert not list(run.glob("stages/*/quarantine.*.jsonl"))
    rows = {(r["variant"], r["benchmark"]): r for r in json.loads((run / "evaluation/scores.json").read_text())}
    assert {key: row["n"] for key, row in rows.items()} == {
        (variant, name): 3
        for variant in ("trained", "blind", "untrained")
        for name in ("read", "pick", "write", "edit")
    }
    for (variant, name), row in rows.items():
        drawn = sorted((run / "evaluation" / variant / name).glob("*.png"))
        measures = {"ned", "shuffled", "shuffled_ned", "judge"} if row["kind"] == "drawing" else set()
        assert (len(drawn), set(row["measures"])) == (3 if measures else 0, measures)
        for path in drawn:
            with Image.open(path) as picture:
                assert picture.size == (WIDTH, HEIGHT)
    same = {
        name: [(run / f"evaluation/{v}/{name}/AB.png").read_bytes() for v in ("trained", "blind")]
        for name in ("write", "edit")
    }
    assert same["write"][0] == same["write"][1], "no picture is seen"
    assert same["edit"][0] != same["edit"][1]


def test_losses_of_images_and_of_the_gate_are_told(run):
    for stage, terms in (("pretrain", {"image"}), ("tune", {"image", "gate"})):
        for row in metrics(run, stage):
            told = {name for name in ("image", "gate") if name in json.dumps(row)}
            assert told == terms
            assert math.isfinite(row["loss"])


def test_each_stage_moves_what_it_declares(run):
    first, second = (read(run / "stages" / stage / "final").tensors for stage in STAGES)
    assert {name.split(".")[0] for name in first} == {
        "language", "tower", "connector", "start_D", "text_head", "decoder",
    }  # fmt: skip
    added = {name for name in second if name not in first}
    assert added
    assert all(".experts." in name or name.startswith("slide.router.") for name in added)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert {name.split(".")[0] for name in moved} == {"connector", "start_D", "text_head", "decoder"}
    still = {name for name in first if name.split(".")[0] in ("connector", "decoder")} - moved
    assert still == set(), f"{len(still)} of what trains did not move"
    experts = [tensor for name, tensor in second.items() if name.endswith("lora_b_EDR")]
    assert all(tensor[expert].any() for tensor in experts for expert in range(3))
    assert second["slide.router.weight"].any()


class Cut(BaseException):
    """The end of a run in the middle of a step."""


def test_a_run_that_was_cut_off_resumes_with_the_same_noise(project, run, monkeypatch):
    """Of a drawing's loss noise, step and blindness are drawn anew in every step: from (seed, step, process) alone."""
    (spec, folder), save = made(project, "cut", "evaluation=null"), StageSaver.save

    def save_and_end(saver, step, scores):
        save(saver, step, scores)
        if (saver._name, step) == ("tune", 3):
            saver.wait()
            raise Cut

    monkeypatch.setattr(StageSaver, "save", save_and_end)
    with pytest.raises(Cut):
        run_all(spec, folder)
    monkeypatch.undo()
    assert list(folder.done()) == ["pretrain"]
    torch.manual_seed(0)
    run_all(spec, folder)
    begun = [event for event in folder.events() if event["event"] == "stage_started" and event["stage"] == "tune"]
    assert [event["step"] for event in begun] == [0, 3]
    for stage in STAGES:
        assert losses(folder.path, stage) == losses(run, stage)
        expected, found = (read(path / "stages" / stage / "final").tensors for path in (run, folder.path))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), stage


def test_two_processes_see_the_same_samples(project, run):
    """Their losses differ: noise depends on the process, too. Some micro-batches draw nothing."""
    small = [f"stages.{stage}.training.{what}" for stage in STAGES for what in ("micro_batch=1", "steps=3")]
    process = start("run", project, *folders(project, "both"), "engine.processes=2", "evaluation=null", *small)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    both = project.parent / "runs/both/small"
    for stage in STAGES:
        ours, theirs = metrics(both, stage), metrics(run, stage)[:3]
        assert [row["samples"] for row in ours] == [row["samples"] for row in theirs]
        assert [row["losses"].keys() for row in ours] == [row["losses"].keys() for row in theirs]
        assert [row["loss"] for row in ours] != [row["loss"] for row in theirs]
        assert all(math.isfinite(row["loss"]) for row in ours)
        assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.5)


def test_a_seed_gives_its_picture_whatever_is_drawn_beside_it(run, mmmoe, tmp_path):
    prompt = 'Generate an image of the word "AB".'

    def drawn(name, *settings):
        status, said = mmmoe("generate", run, prompt, f"out={tmp_path / name}", "steps=2", *settings)
        assert status == 0, said
        return {p.stem.rpartition("seed")[2]: np.asarray(Image.open(p)).astype(int)
                for p in (tmp_path / name).glob("*-seed*.png")}  # fmt: skip

    four, two = drawn("four", "count=4", "batch=4", "seed=7"), drawn("two", "count=2", "batch=1", "seed=8")
    assert sorted(four) == ["10", "7", "8", "9"]
    assert sorted(two) == ["8", "9"]
    for seed, picture in two.items():
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert abs(picture - four[seed]).max() <= 1
    assert abs(two["8"] - two["9"]).max() > 1
    with Image.open(tmp_path / "four/grid.png") as grid:
        assert grid.size == (4 * (WIDTH + 2) - 2, HEIGHT)
    image = run.parents[2] / "images/CD_black.png"
    edited = drawn("edited", "count=1", "seed=8", f"image={image}")
    assert abs(edited["8"] - two["8"]).max() > 1


def test_what_cannot_be_drawn_is_told(run, mmmoe, tmp_path):
    for prompt, settings, said in (
        (" ", (), "the prompt is empty"),
        ("x", ("image=none.png",), "image: no file none.png"),
        ("x", ("count=0",), "count"),
        ("x", ("colour=red",), "colour"),
    ):
        status, told = mmmoe("generate", run, prompt, f"out={tmp_path}", *settings)
        assert status != 0
        assert said in told
        assert "Traceback" not in told
    assert not list(tmp_path.iterdir())
