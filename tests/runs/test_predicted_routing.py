"""Experts that a stage's judge names itself: what an exam would hear, asked once and kept in parts."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from mova_project import finished_stage, make_mova_project

from mmmoe import dist, env
from mmmoe.config.load import load
from mmmoe.data import sample_column
from mmmoe.data.dataset import open_sources
from mmmoe.data.routed_images import RoutedImages, draw_routing
from mmmoe.data.routing_labels import routing_in
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shards import ShardSet
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.routing import with_routing
from mmmoe.stages import image_routing
from mmmoe.stages.draw import transforms_of
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.image_routing import ANSWERS, named_base, named_columns, training_guide
from mmmoe.stages.spec import RunSpec

SAMPLES = 20
NAMES = ("shapes", "colours")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_mova_project(tmp_path_factory.mktemp("mova") / "project", samples=SAMPLES)


@pytest.fixture(scope="module")
def run(project):
    return load(project, RunSpec)


@pytest.fixture(scope="module")
def judge(run, tmp_path_factory):
    return finished_stage(tmp_path_factory.mktemp("judge") / "final", run, language=0.4)


def read_at_random(self, answer):
    """Stands for a trained judge's letters: what a random language model says means a routing all the same."""
    return draw_routing(answer, len(self.experts))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(sample_column, "PART", 4)
    monkeypatch.setattr(RoutedImages, "read", read_at_random)


def build(judge, run, cache, *, names=NAMES, sources=None):
    """Asks for the experts of some sources; returns their columns."""
    wanted = [source for source in run.stages[1].mixture.sources if source.name in names]
    sources = open_sources(run.stages[1].mixture.model_copy(update={"sources": wanted})) if sources is None else sources
    model = rebuild(judge.path)[0]
    return named_columns(judge, named_base(run.model, model), sources, transforms_of(model), Path(cache))


def numbers_of(columns):
    return [[column.number(index) for index in range(len(column.shards))] for column in columns]


def test_a_sample_gets_the_experts_that_an_exam_would_give_its_question(run, judge, tmp_path):
    columns = build(judge, run, tmp_path / "cache")
    model, heritage = rebuild(judge.path)
    subject = subject_of(model, heritage, tmp_path)
    sources = open_sources(run.stages[2].mixture)
    images = Path(run.stages[0].mixture.sources[0].shards).parent.parent / "images"
    said = set()
    for source, column in zip(sources, columns, strict=True):
        questions = []
        for index in range(SAMPLES):
            record = source.shards.record(index)
            asked = record.turns[0].text.removeprefix("<image>\n")
            questions.append(Question(id=record.key, image=images / f"{index}.png", text=asked, answer="", domain=""))
        routed = with_routing(subject, questions, "predicted")
        wanted = [question.routing for question in routed]
        assert [routing_in(column.number(index), 3) for index in range(SAMPLES)] == wanted
        said.update(wanted)
    assert len(said) > 3, "the judge says different things"


def test_what_is_no_answer_names_nobody(run, judge, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real reader, to which a random model's words mean nothing
    assert set(numbers_of(build(judge, run, tmp_path, names=("shapes",)))[0]) == {0.0}


def test_text_is_not_asked_about_and_gets_nobody(run, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(type(rebuild(judge.path)[0]), "generate", lambda *_, **__: pytest.fail("asked about text"))
    [column] = build(judge, run, tmp_path, names=("text",))
    assert not column.missing()
    assert all(math.isnan(number) for number in numbers_of([column])[0])
    assert routing_in(column.number(0), 3) == (0, 0, 0)


def test_a_damaged_picture_gets_nobody_and_the_others_theirs(run, judge, tmp_path):
    shutil.copytree(run.stages[0].mixture.sources[0].shards, tmp_path / "damaged")
    entry = ShardSet(tmp_path / "damaged").shards[0].entry(5)
    offset, size = next(place for ending, place in entry.members.items() if ending != "json")
    with ShardSet(tmp_path / "damaged").shards[0].path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * size)
    source = replace(open_sources(run.stages[0].mixture)[0], shards=ShardSet(tmp_path / "damaged"))
    [want] = numbers_of(build(judge, run, tmp_path / "a", names=("shapes",)))
    [found] = numbers_of(build(judge, run, tmp_path / "b", sources=[source]))
    assert math.isnan(found[5])
    assert [*found[:5], *found[6:]] == [*want[:5], *want[6:]]


def test_a_question_too_long_for_a_routing_pass_gets_nobody(run, judge, tmp_path, monkeypatch):
    [whole] = numbers_of(build(judge, run, tmp_path / "whole", names=("shapes",)))
    prompt = RoutedImages.prompt
    monkeypatch.setattr(RoutedImages, "prompt", lambda self, text: prompt(self, text) + " shape" * 300)
    [found] = numbers_of(build(judge, run, tmp_path / "long", names=("shapes",)))
    assert not any(math.isnan(number) for number in whole)
    assert all(math.isnan(number) for number in found)


def test_a_stopped_asking_goes_on_at_the_missing_part(run, judge, tmp_path, monkeypatch):
    whole = numbers_of(build(judge, run, tmp_path / "whole"))
    write, written = SampleColumn.write, []

    def dies(self, part, numbers_N):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, numbers_N)

    monkeypatch.setattr(SampleColumn, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        build(judge, run, tmp_path / "killed")
    monkeypatch.setattr(SampleColumn, "write", lambda self, part, x: written.append(part) or write(self, part, x))
    assert numbers_of(build(judge, run, tmp_path / "killed")) == whole
    assert len(written) == 2 * 5  # two sources, five parts of four samples


def test_a_second_run_asks_nothing_and_needs_no_judge(run, judge, tmp_path, monkeypatch):
    first = numbers_of(build(judge, run, tmp_path))
    model = rebuild(judge.path)[0]
    monkeypatch.setattr(image_routing, "rebuild", lambda path: pytest.fail("the judge was built again"))
    base, transforms = named_base(run.model, model), transforms_of(model)
    again = named_columns(judge, base, open_sources(run.stages[2].mixture), transforms, tmp_path)
    assert numbers_of(again) == first
    assert {path.parent.parent.name for path in tmp_path.rglob("*.npy")} == {ANSWERS}


def test_what_an_answer_depends_on_is_in_its_name(run, judge, tmp_path):
    model, sources = rebuild(judge.path)[0], open_sources(run.stages[2].mixture)
    base, transforms = named_base(run.model, model), transforms_of(model)
    cache = tmp_path / "cache"
    named_columns(judge, base, sources, transforms, cache)
    kept = sorted(cache.rglob("*.npy"))
    named_columns(finished_stage(tmp_path / "twin", run, language=0.4), base, sources, transforms, cache)
    assert sorted(cache.rglob("*.npy")) == kept, "the same stage elsewhere"
    spec = judge.model
    shape = spec.experts["shape"]
    said = spec.experts | {"shape": shape.model_copy(update={"descriptions": ["Knows shapes."]})}
    others = {
        "weights": (finished_stage(tmp_path / "other", run, language=0.4, seed=6), base),
        "descriptions": (replace(judge, model=spec.model_copy(update={"experts": said})), base),
        "instruction": (replace(judge, model=spec.model_copy(update={"instruction": "who?"})), base),
        "rule": (replace(judge, model=spec.model_copy(update={"routing_rule": "released"})), base),
        "template": (replace(judge, template=judge.template.model_copy(update={"system": "hm"})), base),
        "tokenizer or tower": (judge, f"{base} other"),
    }
    for what, (other, its_base) in others.items():
        named_columns(other, its_base, sources, transforms, cache)
        found = sorted(cache.rglob("*.npy"))
        assert len(found) == len(kept) + 10, what
        kept = found


def test_a_guide_routes_as_named_and_cuts_at_most(run, judge, tmp_path):
    run = run.model_copy(update={"cache": str(tmp_path)})
    stage, model = run.stages[3], rebuild(judge.path)[0]
    sources = open_sources(stage.mixture)
    columns = build(judge, run, tmp_path, names=(*NAMES, "text"))
    sizes = {}
    for most in (1, 3):
        routing = stage.routing.model_copy(update={"most": most})
        cut = stage.model_copy(update={"routing": routing})
        guide = training_guide(run, cut, model, sources, transforms_of(model), {"built": judge})
        sizes[most] = set()
        for source in range(2):
            for index in range(SAMPLES):
                guided = guide(sources[source].shards.record(index), source, index)
                named = [e for e in range(3) if int(columns[source].number(index)) >> e & 1][:most]
                assert guided.beside["image.routing"].tolist() == [[int(e in named) for e in range(3)]]
                sizes[most].add(len(named))
        assert guide(sources[2].shards.record(0), 2, 0).views == frozenset()
    assert max(sizes[1]) == 1
    assert max(sizes[3]) > 1


def build_in_process(rank, world, port, project, judge, cache):
    """Asks as one of several processes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    sample_column.PART = 4
    RoutedImages.read = read_at_random
    dist.start()
    numbers = numbers_of(build(Heritage.read(judge), load(project, RunSpec), cache))
    (cache / f"rank{rank}.txt").write_text(repr(numbers))
    dist.stop()


@pytest.mark.slow
def test_two_processes_hear_what_one_hears(project, run, judge, tmp_path):
    alone = numbers_of(build(judge, run, tmp_path / "one"))
    (tmp_path / "two").mkdir()
    given = (2, env.free_port(), project, judge.path, tmp_path / "two")
    torch.multiprocessing.spawn(build_in_process, args=given, nprocs=2)
    assert {(tmp_path / "two" / f"rank{rank}.txt").read_text() for rank in range(2)} == {repr(alone)}
    one, two = (sorted((tmp_path / name).rglob("*.npy")) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    assert all(np.array_equal(np.load(a), np.load(b)) for a, b in zip(one, two, strict=True))
