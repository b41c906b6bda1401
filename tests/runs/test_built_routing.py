"""Routing labels that a stage builds: what its judge loses without experts and with each alone, kept in parts."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from mova_project import finished_stage, make_mova_project

from mmmoe import dist, env
from mmmoe.config.load import load
from mmmoe.data import sample_column
from mmmoe.data.collate import collate
from mmmoe.data.dataset import open_sources, with_features
from mmmoe.data.routing_labels import routing_of
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shards import ShardSet
from mmmoe.stages import image_routing
from mmmoe.stages.draw import encode, feature_key, transforms_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.image_routing import built_columns, judge_dataset, training_guide, weights_of
from mmmoe.stages.spec import RunSpec

ROUTINGS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_mova_project(tmp_path_factory.mktemp("mova") / "project", samples=20)


@pytest.fixture(scope="module")
def run(project):
    return load(project, RunSpec)


@pytest.fixture(scope="module")
def judge(run, tmp_path_factory):
    return finished_stage(tmp_path_factory.mktemp("judge") / "final", run)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(sample_column, "PART", 4)


def build(judge, run, cache, *, names=("shapes", "colours"), sources=None):
    """Builds the labels of two sources; returns their columns."""
    wanted = [s for s in run.stages[1].mixture.sources if s.name in names]
    sources = open_sources(run.stages[1].mixture.model_copy(update={"sources": wanted})) if sources is None else sources
    model = rebuild(judge.path)[0]
    return built_columns(judge, f"{weights_of(model)}", sources, transforms_of(model), Path(cache))


def losses_of(columns):
    return [[[column.number(n) for n in range(len(column.shards))] for column in of_source] for of_source in columns]


def test_losses_are_those_of_one_sample_after_the_other(run, judge, tmp_path):
    columns = build(judge, run, tmp_path, names=("shapes",))
    model, source = rebuild(judge.path)[0].eval(), open_sources(run.stages[0].mixture)[0]
    labels = set()
    for number in range(20):
        by_hand = []
        for routing in ROUTINGS:
            sample = judge_dataset(judge, model, source, transforms_of(model), routing).get(0, number)
            output = model(**collate([sample], 3).inputs())
            by_hand.append(float(output.nll_B.detach() / output.num_targets_B))
        kept = [column.number(number) for column in columns[0]]
        assert kept == pytest.approx(by_hand, abs=1e-5)
        labels.add(routing_of(kept))
    assert len(labels) > 1


def test_a_fresh_adapter_marks_nobody(run, tmp_path):
    """Experts change nothing in it, so no loss is lower, not even by rounding."""
    columns = build(finished_stage(tmp_path / "fresh", run, scale=0.0), run, tmp_path)
    for of_source in losses_of(columns):
        assert len({tuple(column) for column in of_source}) == 1
        assert {routing_of(losses) for losses in zip(*of_source, strict=True)} == {(0, 0, 0)}


def test_a_stopped_building_goes_on_at_the_missing_part(run, judge, tmp_path, monkeypatch):
    whole = losses_of(build(judge, run, tmp_path / "whole"))
    write, written = SampleColumn.write, []

    def dies(self, part, losses_N):
        if len(written) == 13:
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, losses_N)

    monkeypatch.setattr(SampleColumn, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        build(judge, run, tmp_path / "killed")
    monkeypatch.setattr(SampleColumn, "write", lambda self, part, x: written.append(part) or write(self, part, x))
    assert losses_of(build(judge, run, tmp_path / "killed")) == whole
    assert len(written) == 2 * 4 * 5  # two sources, four columns, five parts of four samples


def test_a_second_run_computes_nothing_and_needs_no_judge(run, judge, tmp_path, monkeypatch):
    first = losses_of(build(judge, run, tmp_path))
    model = rebuild(judge.path)[0]
    monkeypatch.setattr(image_routing, "rebuild", lambda path: pytest.fail("the judge was built again"))
    monkeypatch.setattr(SampleColumn, "write", lambda *_: pytest.fail("a part was written again"))
    sources = open_sources(run.stages[2].mixture)
    again = built_columns(judge, f"{weights_of(model)}", sources, transforms_of(model), tmp_path)
    assert losses_of(again) == first


def test_another_judge_builds_anew(run, judge, tmp_path):
    first = losses_of(build(judge, run, tmp_path))
    other = finished_stage(tmp_path / "other", run, seed=6)
    assert losses_of(build(other, run, tmp_path)) != first
    twin = finished_stage(tmp_path / "twin", run)
    assert twin.checkpoint.digest == judge.checkpoint.digest
    kept = sorted(tmp_path.rglob("*.npy"))
    assert losses_of(build(twin, run, tmp_path)) == first
    assert sorted(tmp_path.rglob("*.npy")) == kept
    # A tower's file was replaced by another.
    sources, model = open_sources(run.stages[2].mixture), rebuild(judge.path)[0]
    columns = built_columns(judge, f"{weights_of(model)[:-1]} bert-other", sources, transforms_of(model), tmp_path)
    assert len(sorted(tmp_path.rglob("*.npy"))) == len(kept) + sum(len(c.parts()) for of in columns for c in of)


def test_text_is_not_judged_and_marks_nobody(run, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(type(rebuild(judge.path)[0]), "forward", lambda *_, **__: pytest.fail("asked about text"))
    columns = build(judge, run, tmp_path, names=("text",))
    assert not any(column.missing() for column in columns[0])
    assert routing_of([column.number(0) for column in columns[0]]) == (0, 0, 0)


def with_damaged_picture(run, folder):
    """Returns the source of shapes with the picture of sample 5 overwritten in place, so that its index still fits."""
    shutil.copytree(run.stages[0].mixture.sources[0].shards, folder)
    entry = ShardSet(folder).shards[0].entry(5)
    offset, size = next(place for ending, place in entry.members.items() if ending != "json")
    with ShardSet(folder).shards[0].path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * size)
    return replace(open_sources(run.stages[0].mixture)[0], shards=ShardSet(folder))


@pytest.mark.parametrize("is_encoded", [False, True])
def test_a_sample_that_cannot_be_read_gets_no_label_and_the_building_goes_on(run, judge, tmp_path, is_encoded):
    sources = [with_damaged_picture(run, tmp_path / "damaged")]
    if is_encoded:
        sources = encoded(rebuild(judge.path)[0], sources, tmp_path / "features")
    want = build(judge, run, tmp_path / "whole", names=("shapes",))[0]
    found = build(judge, run, tmp_path / "losses", sources=sources)[0]
    for number in range(20):
        losses = [column.number(number) for column in found]
        if number == 5:
            assert all(math.isnan(loss) for loss in losses)
            assert routing_of(losses) == (0, 0, 0)
        else:
            assert losses == pytest.approx([column.number(number) for column in want], abs=2e-3)


def encoded(model, sources, folder):
    transforms = transforms_of(model)
    keys = {view: feature_key(model, view, transform) for view, transform in transforms.items()}
    sources = with_features(sources, folder, keys)
    encode(model, sources, transforms)
    return sources


def test_features_of_a_tower_that_the_judge_has_otherwise_are_not_its(run, judge, tmp_path):
    """The judge trained the base tower, the stage that asks it starts from one that did not."""
    trained = finished_stage(tmp_path / "trained", run, tower=0.5)
    sources = open_sources(run.stages[0].mixture)
    kept = encoded(rebuild(judge.path)[0], sources, tmp_path / "features")
    from_kept = losses_of(build(trained, run, tmp_path / "a", sources=kept))
    from_pictures = losses_of(build(trained, run, tmp_path / "b", sources=sources))
    assert torch.tensor(from_kept) == pytest.approx(torch.tensor(from_pictures), abs=2e-3)  # float16 of the experts'
    own = losses_of(build(judge, run, tmp_path / "c", sources=kept))
    assert torch.tensor(from_kept) != pytest.approx(torch.tensor(own), abs=2e-2)


def test_a_guide_routes_by_the_labels(run, judge, tmp_path):
    run = run.model_copy(update={"cache": str(tmp_path)})
    stage, model = run.stages[2], rebuild(judge.path)[0]
    sources = open_sources(stage.mixture)
    for most in (1, 2):
        stage = stage.model_copy(
            update={"routing": stage.routing.model_copy(update={"most": most, "conversations": {}})}
        )
        guide = training_guide(run, stage, model, sources, transforms_of(model), {"tune": judge})
        columns = build(judge, run, tmp_path)
        sizes = set()
        for source in range(2):
            for number in range(20):
                guided = guide(sources[source].shards.record(number), source, number)
                label = routing_of([column.number(number) for column in columns[source]], most)
                assert guided.beside["image.routing"].tolist() == [list(label)]
                sizes.add(sum(label))
        assert max(sizes) == most


def build_in_process(rank, world, port, project, judge, cache):
    """Builds as one of several processes."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    sample_column.PART = 4
    dist.start()
    losses = losses_of(build(Heritage.read(judge), load(project, RunSpec), cache))
    (cache / f"rank{rank}.txt").write_text(repr(losses))
    dist.stop()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(project, run, judge, tmp_path):
    alone = losses_of(build(judge, run, tmp_path / "one"))
    (tmp_path / "two").mkdir()
    given = (2, env.free_port(), project, judge.path, tmp_path / "two")
    torch.multiprocessing.spawn(build_in_process, args=given, nprocs=2)
    assert {(tmp_path / "two" / f"rank{rank}.txt").read_text() for rank in range(2)} == {repr(alone)}
    one, two = (sorted((tmp_path / name).rglob("*.npy")) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
