"""Labelled shards: a synthetic table of losses becomes bits in the json, and nothing else of a shard changes."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from data_media import picture

from mmmoe.data import index as index_module
from mmmoe.data.index import index_path
from mmmoe.data.routing_shards import count_labels, labels_of, write_labelled
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shards import ShardSet

NAN = float("nan")


def write_tar(path, samples):
    """Writes members as given, so that a tar looks as others make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (name, content) in enumerate(samples):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1000 + number, "somebody"
            tar.addfile(info, io.BytesIO(content))


def dialogue(question="<image>\nwhat?", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "ein Bär"}]
    return json.dumps({"conversations": turns, **fields}, ensure_ascii=False).encode()


def columns_of(tmp_path, shards, table_NE):
    """Returns columns that hold a table of losses (samples by base and experts)."""
    table_NE = np.array(table_NE, dtype=np.float32)
    columns = [SampleColumn(tmp_path / "losses", f"judge {number}", shards) for number in range(table_NE.shape[1])]
    for number, column in enumerate(columns):
        for part in column.missing():
            first = column.first(part)
            column.write(part, table_NE[first : first + part.stop - part.start, number])
    return columns


@pytest.fixture
def shards(tmp_path):
    """Two shards: LLaVA's json, captions in txt below a folder, text alone, and one that is no dialogue."""
    write_tar(
        tmp_path / "in/a.tar",
        [
            ("0.json", dialogue(domain="chart", routing_weights=[1, 1, 1, 1], more={"x": "é"})),
            ("0.0.png", picture(9)),
            ("0.note", b"kept"),
            ("1.png", picture(9)),
            ("1.json", dialogue()),
            ("2.json", dialogue("which?", domain="text")),
        ],
    )
    write_tar(
        tmp_path / "in/b.tar",
        [
            ("deep/3.txt", b"a bear"),
            ("deep/3.jpg", picture(9)),
            ("deep/4.json", b"[1]"),
            ("deep/4.jpg", picture(9)),
            ("deep/5.jpg", picture(9)),
            ("deep/5.txt", b"another"),
        ],
    )
    return ShardSet(tmp_path / "in")


TABLE = [
    [1.0, 0.5, 0.4, 0.3, 0.2],  # four help: the best three
    [1.0, 1.0, 2.0, 0.9, NAN],  # equal is no help, nor is what could not be read
    [1.0, 0.1, 0.1, 0.1, 0.1],  # no image
    [1.0, 3.0, 3.0, 3.0, 3.0],  # nobody
    [1.0, 0.0, 0.0, 0.0, 0.0],  # no dialogue
    [NAN, 0.1, 0.1, 0.1, 0.1],  # the base could not read it
]
EXPECTED = [(0, 1, 1, 1), (0, 0, 1, 0), (0, 0, 0, 0), (0, 0, 0, 0), None, (0, 0, 0, 0)]


@pytest.fixture
def labels(shards, tmp_path):
    columns = columns_of(tmp_path, shards, TABLE)
    return [labels_of(shards, number, columns) for number in range(2)]


def test_labels_of_a_synthetic_table(labels):
    found = [label for of_shard in labels for label in of_shard]
    assert [label.routing for label in found] == EXPECTED
    outcomes = ["labelled", "labelled", "no image", "labelled", "unreadable", "unreadable"]
    assert [label.outcome for label in found] == outcomes
    assert [label.silent for label in found] == [(), (3,), (), (), (), ()]
    counts = count_labels(found)
    assert counts["chart"] == {"samples": 1, "labelled": 1, 1: 1, 2: 1, 3: 1}
    assert counts[""] == {"samples": 4, "labelled": 2, "unreadable": 2, 2: 1, "none": 1}
    assert counts["text"] == {"samples": 1, "no image": 1}


def test_only_the_json_changes_and_captions_get_one(shards, labels, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert [write_labelled(shards, number, labels[number], out) for number in range(2)] == [False, False]
    for number, name in enumerate(("a.tar", "b.tar")):
        with tarfile.open(tmp_path / "in" / name) as old, tarfile.open(out / name) as new:
            fresh = [info for info in new if info.name not in old.getnames()]
            assert [info.name for info in fresh] == [[], ["deep/3.json", "deep/5.json"]][number]
            assert [name for name in new.getnames() if name in old.getnames()] == old.getnames()
            for info in old:
                other = new.getmember(info.name)
                assert (info.mtime, info.uname, info.mode) == (other.mtime, other.uname, other.mode)
                if not info.name.endswith("json") or info.name == "deep/4.json":
                    assert old.extractfile(info).read() == new.extractfile(other).read()
    again = ShardSet(out)
    assert [again.record(n, kinds=()).routing for n in (0, 1, 2, 3, 5)] == [EXPECTED[n] for n in (0, 1, 2, 3, 5)]
    for number in (0, 1, 2, 3, 5):
        before, after = shards.record(number), again.record(number)
        assert (before.key, before.turns, before.domain, before.media) == (
            after.key,
            after.turns,
            after.domain,
            after.media,
        )
    assert json.loads(again.shards[0].read(again.entry(0), "json"))["more"] == {"x": "é"}


def test_plain_webdataset_reads_them(shards, labels, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for number in range(2):
        write_labelled(shards, number, labels[number], out)
    found = [
        sample
        for name in ("a.tar", "b.tar")
        for sample in webdataset.WebDataset(str(out / name), shardshuffle=False).decode()
    ]
    assert [sample["__key__"] for sample in found] == ["0", "1", "2", "deep/3", "deep/4", "deep/5"]
    assert [sample["json"].get("routing_weights") for sample in found if isinstance(sample["json"], dict)] == [
        list(routing) for routing in EXPECTED if routing is not None
    ]
    assert found[3]["json"]["conversations"][1] == {"from": "gpt", "value": "a bear"}


def test_a_finished_shard_stays_and_a_torn_or_other_one_is_written_again(shards, labels, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    write_labelled(shards, 0, labels[0], out)
    before = (out / "a.tar").stat().st_mtime_ns
    assert write_labelled(shards, 0, labels[0], out)
    assert (out / "a.tar").stat().st_mtime_ns == before
    index_path(out / "a.tar").unlink()  # killed between the tar and its index
    assert not write_labelled(shards, 0, labels[0], out)
    assert not write_labelled(shards, 0, labels[0][::-1], out)  # other labels
    content = (out / "a.tar").read_bytes()
    (out / "a.tar").write_bytes(content[:-600])
    assert not write_labelled(shards, 0, labels[0][::-1], out)
    assert (out / "a.tar").read_bytes() == content

    def dies(descriptor):
        raise OSError("killed")

    monkeypatch.setattr(index_module.os, "fsync", dies)
    with pytest.raises(OSError, match="killed"):
        write_labelled(shards, 1, labels[1], out)
    assert not list(out.glob("*b.tar*"))


def test_half_of_a_surrogate_pair_survives(tmp_path):
    content = b'{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "\\ud800"}]}'
    write_tar(tmp_path / "in/a.tar", [("0.json", content), ("0.png", picture(9))])
    shards = ShardSet(tmp_path / "in")
    labels = labels_of(shards, 0, columns_of(tmp_path, shards, [[1.0, 0.5]]))
    (tmp_path / "out").mkdir()
    write_labelled(shards, 0, labels, tmp_path / "out")
    again = ShardSet(tmp_path / "out")
    assert json.loads(again.shards[0].read(again.entry(0), "json")) == json.loads(content) | {"routing_weights": [1]}
    assert b"\\ud800" in again.shards[0].read(again.entry(0), "json")
