"""`mmmoe cache` lists what is there and trims it: features first, what was not used for longest first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from budget_toy import STAGE, Model, fill, run_of, sources_of, write_shards

from mmmoe.cli import app
from mmmoe.cli_errors import guarded
from mmmoe.data.feature_folders import ABOUT
from mmmoe.stages.cache_content import content_of
from mmmoe.stages.feature_budget import make_room


@pytest.fixture
def cache(tmp_path):
    """Features of two towers (used at 1000 and 3000), pictures, losses and a stage of 1000 bytes each."""
    cache = tmp_path / "cache"
    for name, time in (("early", 1000), ("late", 3000)):
        sources = sources_of(write_shards(tmp_path / name, 8), cache, Model(name))
        fill(sources)
        for folder in sources[0].features["image"].folders:
            os.utime(folder / ABOUT, (time, time))
    for name in (
        f"pictures/{'a' * 16}/00/x.npy",
        f"routing_losses/{'b' * 32}/00000000.npy",
        f"stages/align-{'0' * 16}/model.safetensors",
    ):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(bytes(1000))
    return cache


@pytest.fixture
def mmmoe(monkeypatch, capfd):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmmoe", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            status = guarded(app)
        except SystemExit as leaving:
            status = leaving.code or 0
        return status, "".join(capfd.readouterr())

    return call


def parts_of(cache):
    return [(kept.part, kept.what.split()[-1]) for kept in content_of(cache)]


def test_the_list_has_every_part_with_size_and_last_use(cache, mmmoe):
    status, said = mmmoe("cache", cache)
    assert status == 0
    for word in ("image features of early", "4 x 3", "1970-01-01", "align-0000", "losses of judges", "1e-06"):
        assert word in said, said


def test_prune_takes_the_oldest_features_first_and_a_stage_last(cache, mmmoe):
    size = sum(kept.bytes for kept in content_of(cache))
    status, said = mmmoe("cache", cache, "prune", (size - 1) / 1e9)
    assert status == 0
    assert "deleted features: image features of early" in said
    assert parts_of(cache)[0] == ("features", "early")  # the second of its two folders was not in the way
    assert mmmoe("cache", cache, "prune", 2500 / 1e9)[0] == 0
    assert [part for part, _ in parts_of(cache)] == ["routing_losses", "stages"]
    assert mmmoe("cache", cache, "prune", 0)[0] == 0
    assert content_of(cache) == []


def test_prune_leaves_what_a_run_is_using(cache, tmp_path, mmmoe):
    sources = sources_of(tmp_path / "early/shards", cache, Model("early"))
    make_room(run_of(None), STAGE, Model("early"), sources)
    status, said = mmmoe("cache", cache, "prune", 0)
    assert status == 0
    assert "the rest are features that runs under way use" in said
    assert parts_of(cache) == [("features", "early")] * 2
    sources[0].features["image"].close()


def test_folders_that_no_cache_made_are_left_alone(cache, mmmoe):
    """A run folder, and this project's own root, have `stages` too."""
    for name in ("stages/llava_mole/1_align.yaml", "stages/mole/final/manifest.json", "features/mine/x.npy"):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text("mine")
    assert mmmoe("cache", cache, "prune", 0)[0] == 0
    assert sorted(path.name for path in (cache / "stages").iterdir()) == ["llava_mole", "mole"]
    assert (cache / "features/mine/x.npy").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["prune"], "gigabytes to leave"), (["prune", "lots"], "as a number"), (["prune", "nan"], "as a number"),
     (["a", "b"], "expected mmmoe cache"), (["configs"], "it is no cache")],
)  # fmt: skip
def test_mistakes_are_told(arguments, message, mmmoe):
    status, said = mmmoe("cache", *arguments)
    assert status == 2
    assert message in said
