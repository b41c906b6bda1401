"""A stage's features have room or it says why not; what goes for them is what nobody uses, the oldest first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from budget_toy import (
    STAGE,
    TRANSFORM,
    Model,
    encode,
    fill,
    need_gb,
    run_of,
    sources_of,
    write_shards,
)

from mmmoe import env
from mmmoe.data import features as features_module
from mmmoe.data.feature_folders import ABOUT, read_folders
from mmmoe.data.feature_lease import in_use
from mmmoe.stages import feature_budget
from mmmoe.stages.feature_budget import make_room, view_needs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(features_module, "PARTS", dict.fromkeys(features_module.PARTS, 3))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "own", 10)


def close(sources):
    for source in sources:
        for store in source.features.values():
            store.close()


def kept_features(cache, tmp_path, names, used):
    """Encodes 8 pictures (two folders) under each name as other runs did, last used at the given times."""
    for seed, (name, time) in enumerate(zip(names, used, strict=True), 1):
        sources = sources_of(write_shards(tmp_path / name, 8, seed), cache, Model(name))
        fill(sources)
        for folder in sources[0].features["image"].folders:
            os.utime(folder / ABOUT, (time, time))


def towers_left(cache):
    return [folder.about.tower for folder in read_folders(cache / "features")]


def test_need_is_told_by_view_with_what_is_there_and_folders_say_what_they_hold(cache, shards, capfd):
    model = Model("clip", "sam")
    sources = sources_of(shards, cache, model)
    fill([sources[0]])
    shutil.rmtree(sources[0].features["image.1"].folders[2])
    first, second = view_needs(model, sources)
    assert (first.view, first.items, first.missing) == ("image", 10, 0)
    assert (second.view, second.items) == ("image.1", 10)
    on_disk = sum(folder.bytes for folder in read_folders(cache / "features"))
    assert first.there + second.there == on_disk
    # two pictures in the folder that is gone: 2 x 4 tokens x 3 channels x 2 bytes, and what stands around them
    assert second.missing - 2 * 4 * 3 * 2 in range(300)
    make_room(run_of(None), STAGE, model, sources)
    said = capfd.readouterr().err
    assert all(word in said for word in ("image.1", "clip", "sam", "4 x 3", "there already"))
    about = read_folders(cache / "features")[0].about
    assert (about.kind, about.row) == ("image", (4, 3))
    assert about.shard.startswith("shard-")
    fill(sources)
    close(sources)
    assert sum(need.need for need in view_needs(model, sources)) <= (first.need + second.need)
    make_room(run_of(None), STAGE, model, sources)
    assert "there already" not in capfd.readouterr().err  # nothing is missing


def test_two_views_of_one_tower_are_counted_once(cache, shards):
    once, twice = Model("clip"), Model("clip", "clip")
    alone = view_needs(once, sources_of(shards, cache, once))
    both = view_needs(twice, sources_of(shards, cache, twice))
    assert sum(need.need for need in both) == alone[0].need


def test_the_oldest_features_of_others_go_first_and_only_as_many_as_must(cache, shards, tmp_path, caplog, monkeypatch):
    kept_features(cache, tmp_path, ("new", "oldest", "old"), (3000, 1000, 2000))
    model = Model("clip")
    held = sum(folder.bytes for folder in read_folders(cache / "features")) / 1e9
    monkeypatch.setattr(feature_budget.logger(), "propagate", True)
    # One of the folders of "oldest" is not enough, both are.
    sources = sources_of(shards, cache, model)
    make_room(run_of(held + need_gb(10) - 1.5 * held / 6), STAGE, model, sources)
    assert "oldest" in caplog.text
    assert "last used 1970" in caplog.text
    fill(sources)
    assert towers_left(cache) == ["old", "old", "new", "new", "clip", "clip", "clip"]


def test_without_a_limit_nothing_is_deleted(cache, shards, tmp_path):
    kept_features(cache, tmp_path, ("old",), (1000,))
    sources = sources_of(shards, cache, Model("clip"))
    make_room(run_of(None), STAGE, Model("clip"), sources)
    assert towers_left(cache)[:2] == ["old", "old"]


def test_what_the_stage_itself_needs_is_never_deleted(cache, shards, tmp_path):
    model = Model("clip")
    sources = sources_of(shards, cache, model)
    fill(sources)
    for folder in sources[0].features["image"].folders:
        os.utime(folder / ABOUT, (500, 500))  # the oldest of all
    shutil.rmtree(sources[0].features["image"].folders[0])
    kept_features(cache, tmp_path, ("old",), (1000,))
    make_room(run_of(need_gb(10)), STAGE, model, sources)
    assert [part.shard for part in sources[0].features["image"].missing()] == [0, 0]
    assert towers_left(cache) == ["clip"] * 3
    assert min(folder.used for folder in read_folders(cache / "features")) > 1000  # their use is noted


def test_a_stage_that_needs_more_than_the_limit_is_refused_with_numbers_and_choices(cache, shards, tmp_path):
    kept_features(cache, tmp_path, ("old",), (1000,))
    model = Model("clip")
    with pytest.raises(ValueError, match=r"stage align: its features need .* more than cache_limit_gb") as refused:
        make_room(run_of(need_gb(10) * 0.99), STAGE, model, sources_of(shards, cache, model))
    assert all(choice in str(refused.value) for choice in ("raise the limit", "encode_once: false", "fewer experts"))
    assert towers_left(cache) == ["old", "old"]  # nothing goes for a stage that cannot run


def test_a_full_disk_is_told_before_the_encoding(cache, shards, tmp_path, monkeypatch):
    kept_features(cache, tmp_path, ("old",), (1000,))
    old = sum(folder.bytes for folder in read_folders(cache / "features"))
    need = int(need_gb(10) * 1e9)
    monkeypatch.setattr(feature_budget.shutil, "disk_usage", lambda root: shutil._ntuple_diskusage(1, 1, need - old))
    model = Model("clip")
    with pytest.raises(ValueError, match=r"more than the disk has free; make room, .mmmoe cache prune"):
        make_room(run_of(None), STAGE, model, sources_of(shards, cache, model))
    make_room(run_of(1.0), STAGE, model, sources_of(shards, cache, model))  # with a limit old features may go
    assert "old" not in towers_left(cache)


def test_features_that_a_run_under_way_uses_stay(cache, shards, tmp_path):
    theirs = sources_of(write_shards(tmp_path / "theirs", 8, 9), cache, Model("theirs"))
    make_room(run_of(None), STAGE, Model("theirs"), theirs)
    # Their need counts although nothing is encoded yet.
    model = Model("clip")
    with pytest.raises(ValueError, match="of other runs under way"):
        make_room(run_of(need_gb(10) + need_gb(8) / 2), STAGE, model, sources_of(shards, cache, model))
    fill(theirs)
    with pytest.raises(ValueError, match="of other runs under way"):
        make_room(run_of(need_gb(10) + need_gb(8) / 2), STAGE, model, sources_of(shards, cache, model))
    close(theirs)
    make_room(run_of(need_gb(10) + need_gb(8) / 2), STAGE, model, sources_of(shards, cache, model))
    assert "theirs" not in towers_left(cache)[1:]


def start(shards, cache, limit_gb=0.0, seconds=0.0, rank=0, world=1, port=0):
    environment = env.child_environment(rank, world, port, 1)
    arguments = [str(shards), str(cache), str(limit_gb), str(seconds)]
    # As a module, so that it imports this project and not another copy that happens to be installed.
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stages.budget_toy", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_is_taken_for_features(cache, shards):
    writer = start(shards, cache, seconds=60)
    assert [writer.stdout.readline() for _ in range(2)] == ["batch\n"] * 2  # in the middle of the first part
    names = {folder.name for folder in sources_of(shards, cache, Model("tower"))[0].features["image"].folders}
    assert in_use(cache / "features").keys() == names
    writer.kill()
    writer.wait(timeout=30)
    torn = list(cache.rglob("*.tmp"))
    assert torn
    sources = sources_of(shards, cache, Model("tower"))
    make_room(run_of(need_gb(10)), STAGE, Model("tower"), sources)
    assert not any(path.exists() for path in torn)
    assert len(list((cache / "features/.leases").iterdir())) == 1  # the dead one's is forgotten
    fill(sources)
    assert_right(sources)


def assert_right(sources):
    shards, store = sources[0].shards, sources[0].features["image"]
    for index in range(len(shards)):
        (image,) = shards.record(index).media["image"]
        shard, local = shards.locate(index)
        assert torch.equal(store.get(shard, local), encode(TRANSFORM(image)[None])[0].half())


@pytest.mark.slow
def test_two_processes_make_room_once_and_encode_everything(cache, shards, tmp_path):
    kept_features(cache, tmp_path, ("old",), (1000,))
    port = env.free_port()
    both = [start(shards, cache, need_gb(10), rank=rank, world=2, port=port) for rank in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("batch" in out for out, _ in said)
    assert "to make room: deleted" in said[0][1].replace("\n", " ")
    assert "deleted" not in said[1][1]
    sources = sources_of(shards, cache, Model("tower"))
    assert sources[0].features["image"].missing() == []
    assert_right(sources)
    assert towers_left(cache) == ["tower"] * 3
    assert in_use(cache / "features") == {}


@pytest.mark.slow
def test_two_processes_are_refused_alike(cache, shards):
    port = env.free_port()
    both = [start(shards, cache, need_gb(10) / 2, rank=rank, world=2, port=port) for rank in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1]
    assert said[0].startswith("refused: stage align: its features need")
