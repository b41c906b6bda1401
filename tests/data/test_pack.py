import json
import shutil

import pytest
import webdataset
from PIL import Image

from mmmoe.data.index import index_path, parse_entry, read_header
from mmmoe.data.pack import pack
from mmmoe.data.shards import ShardSet


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_report_and_records(llava, packed):
    shards = ShardSet(packed)
    rows = json.loads(llava[0].read_text())
    assert len(shards) == 30
    assert [shard.header.count for shard in shards.shards] == [7, 7, 7, 7, 2]
    for i, row in enumerate(rows):
        record = shards.record(i)
        assert [(turn.role, turn.text) for turn in record.turns] == [
            (turn["from"], turn["value"]) for turn in row["conversations"]
        ]
        assert record.domain == "colour"
        expected = [(llava[1] / row["image"]).read_bytes()] if "image" in row else []
        assert list(record.media.get("image", ())) == expected
    assert len({shards.record(i).key for i in range(30)}) == 30


def test_same_bytes_again_and_with_threads(llava, packed, tmp_path):
    pack(*llava, tmp_path / "again", samples_per_shard=7, domain="colour", workers=3)
    assert contents(packed) == contents(tmp_path / "again")


def test_webdataset_reads_what_we_write(packed):
    found = list(webdataset.WebDataset(str(packed / "shard-000000.tar"), shardshuffle=False))
    assert len(found) == 7
    assert json.loads(found[0]["json"])["id"] == "pic.0"
    assert "0.png" in found[0]
    assert "0.png" not in found[2]


def test_index_line(packed):
    tar = packed / "shard-000000.tar"
    lines = index_path(tar).read_bytes().splitlines()
    header = read_header(tar, lines[0])
    entry = parse_entry(lines[1], 1, header)
    assert entry.modalities == ("image", "text")
    assert entry.sizes == ((12, 8),)
    assert entry.tokens > 0
    assert [parse_entry(line, n, header).first["image"] for n, line in enumerate(lines[1:], 1)] == [0, 1, 2, 2, 3, 4, 4]


def test_finished_shards_are_kept_and_broken_ones_made_again(llava, packed):
    before = contents(packed)
    first, second, third = (packed / f"shard-00000{n}.tar" for n in range(3))
    second.write_bytes(second.read_bytes()[:700])
    index_path(third).unlink()
    stamp = first.stat().st_mtime_ns
    report = pack(*llava, packed, samples_per_shard=7, domain="colour")
    assert report.kept == 3
    assert (report.samples, report.items) == (30, {"image": 20})
    assert first.stat().st_mtime_ns == stamp
    assert contents(packed) == before


def test_changed_rows_are_packed_again(llava, packed, tmp_path):
    rows = json.loads(llava[0].read_text())
    rows[8]["conversations"][1]["value"] = "no"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(rows))
    report = pack(changed, llava[1], packed, samples_per_shard=7, domain="colour")
    assert report.kept == 4
    assert ShardSet(packed).record(8).turns[1].text == "no"


def test_other_packing_in_the_folder_is_refused(llava, packed):
    with pytest.raises(ValueError, match="shards of another packing"):
        pack(*llava, packed, samples_per_shard=15, domain="colour")


def test_all_bad_rows_are_told_at_once(llava, tmp_path):
    rows = json.loads(llava[0].read_text())
    del rows[1]["conversations"]
    rows[3]["image"] = "absent.png"
    rows[4]["image"] = "../rows.json"
    rows[6]["conversations"][0]["value"] = "no mark"
    rows[7]["conversations"][0]["from"] = "nobody"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="5 unusable rows") as caught:
        pack(bad, llava[1], tmp_path / "out", samples_per_shard=7, domain="x")
    for row, words in {
        1: "has no conversations",
        3: "does not exist",
        4: "outside",
        6: "0 <image>",
        7: "nobody",
    }.items():
        assert any(line.strip().startswith(f"row {row}:") and words in line for line in str(caught.value).splitlines())
    assert not (tmp_path / "out").exists()


def test_only_twenty_bad_rows_are_shown(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{} for _ in range(33)]))
    with pytest.raises(ValueError, match="and 13 more") as caught:
        pack(tmp_path / "rows.json", tmp_path, tmp_path / "out", samples_per_shard=7, domain="x")
    assert str(caught.value).count("has no conversations") == 20


def test_unreadable_picture_is_a_bad_row_and_the_rest_is_kept(llava, tmp_path):
    shutil.copytree(llava[1], tmp_path / "images")
    (tmp_path / "images" / "9.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"row 9: .*cannot be read"):
        pack(llava[0], tmp_path / "images", tmp_path / "out", samples_per_shard=7, domain="x")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
    shutil.copy(llava[1] / "9.png", tmp_path / "images")
    assert pack(llava[0], tmp_path / "images", tmp_path / "out", samples_per_shard=7, domain="x").kept == 4


def test_several_images_keep_their_order(tmp_path):
    (tmp_path / "i").mkdir()
    names = [f"{n}.png" for n in range(12)]
    for n, name in enumerate(names):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / "i" / name)
    turns = [{"from": "human", "value": "<image>" * 12}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "r.json").write_text(json.dumps([{"id": 1, "image": names, "conversations": turns}]))
    pack(tmp_path / "r.json", tmp_path / "i", tmp_path / "out", samples_per_shard=1, domain="")
    assert list(ShardSet(tmp_path / "out").record(0).media["image"]) == [
        (tmp_path / "i" / n).read_bytes() for n in names
    ]
