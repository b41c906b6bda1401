import io
import json

from rich.console import Console

from mmmoe.data.check import check
from mmmoe.data.pack import pack
from mmmoe.data.preview import preview
from mmmoe.data.shards import ShardSet


def test_sound_shards(packed):
    seen = []
    report = check(packed, workers=2, on_shard=seen.append)
    assert report.is_sound
    assert (report.shards, report.samples, report.items) == (5, 30, {"image": 20})
    assert report.bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert sorted(seen) == [f"shard-{n:06d}.tar" for n in range(5)]
    assert check(ShardSet(packed)) == report


def test_every_kind_of_damage_is_named(packed):
    shards = ShardSet(packed)
    flipped, cut, broken = (shards.shards[n].path for n in (0, 1, 2))
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1  # padding behind the last member: no sample is touched, only the hash tells
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(broken.read_bytes())
    entry = shards.entry(15)
    offset, size = entry.members["0.png"]
    data[offset : offset + size] = bytes(size)
    broken.write_bytes(bytes(data))
    problems = check(packed).problems
    assert [(p.shard, p.key) for p in problems] == [
        (flipped.name, ""),
        (cut.name, ""),
        (broken.name, ""),
        (broken.name, entry.key),
    ]
    assert "SHA-256" in problems[0].reason
    assert "truncated" in problems[1].reason
    assert "decoded" in problems[3].reason


def test_preview_shows_text_as_it_is(tmp_path):
    turns = [{"from": "human", "value": "is [bold]this[/nothing] markup?"}, {"from": "gpt", "value": "no"}]
    (tmp_path / "r.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    pack(tmp_path / "r.json", tmp_path, tmp_path / "out", samples_per_shard=1, domain="d")
    screen = io.StringIO()
    Console(file=screen, width=200).print(preview(tmp_path / "out", 5))
    assert "is [bold]this[/nothing] markup?" in screen.getvalue()
    assert preview(tmp_path / "out", 5).row_count == 1
