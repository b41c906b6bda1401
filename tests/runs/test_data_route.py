"""`mmmoe data route`: labels from a model an expert or from one MoVA; by hand the same, killed, shared out."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mova_project import LLAMA, finished_stage, make_mova_project, tower

from mmmoe import env
from mmmoe.config.load import load
from mmmoe.data.collate import collate
from mmmoe.data.dataset import Source
from mmmoe.data.shards import ShardSet
from mmmoe.stages import route as route_module
from mmmoe.stages.draw import transforms_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.image_routing import judge_dataset
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.route import Judges
from mmmoe.stages.spec import RunSpec

pytestmark = pytest.mark.slow

SAMPLES = 40
EXPERTS = {"small": (32, 16), "wide": (96, 32), "fine": (64, 64)}


class Place:
    """A project, and finished stages of LLaVAs with different towers in a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mova_yaml = make_mova_project(folder, SAMPLES)
        self.shards = folder / "shards/colours"
        self.cache = folder / "cache"
        declared = yaml.safe_load(self.mova_yaml.read_text())
        stage = declared["stages"][0] | {"routing": None, "trains": ["connector.*"]}
        self.finals = {}
        for number, (name, (width, side)) in enumerate({"base": (64, 32), **EXPERTS}.items()):
            language = {"kind": "scratch", "tokenizer": str(folder / "tokenizer"), "config": LLAMA}
            model = {"family": "llava_mole", "language": language, "tower": tower(width, side)}
            (folder / "llava.yaml").write_text(yaml.safe_dump(declared | {"model": model, "stages": [stage]}))
            spec = load(folder / "llava.yaml", RunSpec, ["evaluation=null"])
            run = RunFolder.create(spec, folder / "runs" / name)
            self.finals[name] = finished_stage(run.final("align"), spec, seed=number).path

    @property
    def words(self) -> list[str]:
        return [str(self.finals["base"]), *(f"{name}={self.finals[name]}" for name in EXPERTS)]

    def start(self, out: Path, rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-m", "mmmoe.cli", "data", "route", str(self.shards), str(out), *self.words]
        environment = env.child_environment(rank, world, port, 1) | {"COLUMNS": "200"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("route") / "project")


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """What a run that nobody disturbs writes, and what it says."""
    out = tmp_path_factory.mktemp("whole")
    process = place.start(out)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return out, said


def losses_by_hand(final, shards, routing=()):
    """Each sample alone, through the model as its own stage would see it."""
    model, heritage = rebuild(final)
    dataset = judge_dataset(heritage, model.eval(), Source("s", "", shards), transforms_of(model), routing)
    found = []
    for index in range(len(shards)):
        sample = dataset.get(0, index)
        output = model(**collate([sample], 3).inputs())
        found.append(float(output.nll_B.detach() / output.num_targets_B))
    return found


def expected_bits(base, *experts, most=3):
    """The paper's rule, read literally."""
    better = sorted((loss, number) for number, loss in enumerate(experts) if loss < base)[:most]
    return [int(any(number == expert for _, number in better)) for expert in range(len(experts))]


def assert_bits(labelled, columns):
    """Compares bits with losses; two losses that differ by rounding only may stand either way."""
    sure = 0
    for index in range(len(labelled)):
        losses = [column[index] for column in columns]
        if min(abs(loss - losses[0]) for loss in losses[1:]) > 1e-5:
            sure += 1
            assert list(labelled.record(index, kinds=()).routing) == expected_bits(*losses)
    assert sure > len(labelled) / 2


def test_an_expert_is_marked_where_its_model_loses_less_than_the_base(place, whole):
    out, said = whole
    shards, labelled = ShardSet(place.shards), ShardSet(out)
    assert len(labelled.shards) == len(shards.shards) == 3
    columns = [losses_by_hand(final, shards) for final in place.finals.values()]
    assert_bits(labelled, columns)
    routings = [labelled.record(index, kinds=()).routing for index in range(len(labelled))]
    assert len(set(routings)) > 2
    told = json.loads((out / "routing.json").read_text())
    assert told["experts"] == list(EXPERTS)
    counts = told["counts"]["colours"]
    assert counts["samples"] == counts["labelled"] == SAMPLES
    for place_of, name in enumerate(EXPERTS):
        assert counts.get(name, 0) == sum(routing[place_of] for routing in routings)
    assert counts.get("none", 0) == sum(not any(routing) for routing in routings)
    assert all(word in said for word in ("colours", "small", "wide", "fine", "none", "unreadable", f"{SAMPLES}"))


def parts_in(cache):
    return {path: path.stat().st_mtime_ns for path in (cache / "routing_losses").rglob("*.npy")}


def same_shards(one, other):
    return [(one / f"shard-{n:06d}.tar").read_bytes() == (other / f"shard-{n:06d}.tar").read_bytes() for n in range(3)]


def test_a_killed_builder_goes_on_where_it_was(place, whole, tmp_path):
    shutil.rmtree(place.cache / "routing_losses")
    process = place.start(tmp_path / "out")
    deadline = time.monotonic() + 200
    while len(parts_in(place.cache)) < 3:  # the base's column: three shards
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = parts_in(place.cache)
    assert 3 <= len(before) < 12
    again = place.start(tmp_path / "out")
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    after = parts_in(place.cache)
    assert len(after) == 12
    assert {path: after[path] for path in before} == before
    assert all(same_shards(whole[0], tmp_path / "out"))
    # Killed between two shards: what stands stays, the rest is written.
    (tmp_path / "out/shard-000001.tar.index.jsonl").unlink()
    (tmp_path / "out/shard-000002.tar").unlink()
    third = place.start(tmp_path / "out")
    said = third.communicate(timeout=300)[0]
    assert "1 of 3 shards stood there already" in said
    assert parts_in(place.cache) == after
    assert all(same_shards(whole[0], tmp_path / "out"))


def test_two_processes_write_what_one_writes(place, whole, tmp_path):
    shutil.rmtree(place.cache / "routing_losses")
    port = env.free_port()
    both = [place.start(tmp_path / "out", rank, 2, port) for rank in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all(same_shards(whole[0], tmp_path / "out"))
    assert (tmp_path / "out/routing.json").read_text() == (whole[0] / "routing.json").read_text()
    assert "routing labels in" in said[0]
    assert "routing labels in" not in said[1]


def test_a_model_is_read_only_where_its_losses_are_missing(place, whole, tmp_path, monkeypatch, mmmoe):
    def refuse(path):
        pytest.fail(f"{path} was read again")

    monkeypatch.setattr(route_module, "rebuild", refuse)
    status, said = mmmoe("data", "route", place.shards, tmp_path / "out", *place.words)
    assert status == 0, said
    assert all(same_shards(whole[0], tmp_path / "out"))


def test_an_unreadable_picture_gets_no_expert_and_the_rest_goes_on(place, tmp_path, mmmoe):
    shutil.copytree(place.shards, tmp_path / "damaged")
    shards = ShardSet(tmp_path / "damaged")
    offset, size = shards.entry(3).members["0.png"]
    with shards.shards[0].path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(size))
    for index in (tmp_path / "damaged").glob("*.jsonl"):
        index.unlink()  # whoever made these shards packed the damaged picture
    status, said = mmmoe("data", "route", tmp_path / "damaged", tmp_path / "out", *place.words[:2])
    assert status == 0, said
    assert ShardSet(tmp_path / "out").record(3, kinds=()).routing == (0,)
    assert json.loads((tmp_path / "out/routing.json").read_text())["counts"]["colours"]["unreadable"] == 1


def test_one_mova_judges_by_each_of_its_experts_alone(place, tmp_path, mmmoe):
    run = load(place.mova_yaml, RunSpec)
    final = finished_stage(tmp_path / "final", run).path
    monkey = tmp_path / "data/local/cache"  # a stage outside a run: the usual cache, below the working folder
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        status, said = mmmoe("data", "route", place.shards, tmp_path / "out", final)
    assert status == 0, said
    assert len(parts_in(monkey)) == 12
    shards, labelled = ShardSet(place.shards), ShardSet(tmp_path / "out")
    routings = [tuple(int(n == chosen) for n in range(3)) for chosen in (None, 0, 1, 2)]
    assert_bits(labelled, [losses_by_hand(final, shards, routing) for routing in routings])
    assert json.loads((tmp_path / "out/routing.json").read_text())["experts"] == ["shape", "colour", "grain"]


def test_mistakes_are_told_before_a_weight_is_read(place, tmp_path, mmmoe):
    base, expert = place.words[:2]
    mova = finished_stage(tmp_path / "final", load(place.mova_yaml, RunSpec)).path
    for words, message in (
        ([base], "has no experts: name a finished stage for each"),
        ([mova, expert], "has experts of its own: give it alone"),
        ([base, f"own={mova}"], "is a MoVA"),
        ([base, "a stage"], "expected mmmoe data route"),
        ([base, expert, expert], "names that differ"),
        ([base, "x=nowhere"], "nowhere is no folder of a finished stage"),
    ):
        status, said = mmmoe("data", "route", place.shards, tmp_path / "out", *words)
        assert status == 2, said
        assert message in said
    status, said = mmmoe("data", "route", place.shards, place.shards, base, expert)
    assert "holds the shards that are read" in said
    shutil.copytree(place.folder / "shards/text", tmp_path / "text")  # of the same names
    status, said = mmmoe("data", "route", place.shards, tmp_path / "text", base, expert)
    assert status == 2
    assert "holds other shards" in said
    assert (tmp_path / "text/shard-000000.tar").read_bytes() == (
        place.folder / "shards/text/shard-000000.tar"
    ).read_bytes()


def test_judges_are_parsed_with_their_order(place):
    judges = Judges.parse(place.words)
    assert list(judges.experts) == list(EXPERTS)
    assert judges.base == place.finals["base"]
