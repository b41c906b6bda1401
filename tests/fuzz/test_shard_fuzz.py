"""Tars and indexes that are damaged or hostile: read as they were, or refused; nothing is written beside them."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import strategies as st
from mutations import damaged, odd_json
from PIL import Image

from mmmoe.data.index import index_path
from mmmoe.data.index_line import signed
from mmmoe.data.shards import ShardSet

TURNS = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a dot"}]


def picture(side):
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, form):
    with tarfile.open(path, "w", format=form) as archive:
        for number in range(3):
            front = "folder/" * (20 if number == 1 else 0)  # beyond 100 characters: an extra header in front
            for ending, content in (
                ("json", json.dumps({"conversations": TURNS, "domain": f"d{number}"}).encode()),
                ("0.png", picture(2 + number)),
            ):
                info = tarfile.TarInfo(f"{front}{number:03d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def header(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


PIECES = (
    header("../../outside.json"), header("/etc/cron.d/x.json"), header("a.json", tarfile.SYMTYPE, 0, "/etc/passwd"),
    header("a.json", tarfile.LNKTYPE, 0, "../x"), header("a.json", tarfile.GNUTYPE_SPARSE, 600),
    header("a.json", size=2**40), header("a.json", size=2**62), header("long", tarfile.GNUTYPE_LONGNAME, 2**50),
    header("p", tarfile.XHDTYPE, 512), header("g", tarfile.XGLTYPE, 512), header("d/", tarfile.DIRTYPE, 2**30),
    header("v", tarfile.GNUTYPE_LONGLINK, 30), header("b", tarfile.CHRTYPE), bytes(1024),
    b"30 path=../../../outside.json\n", b"20 size=99999999999\n", b"18 size=-512\n", b"22 GNU.sparse.major=1\n",
)  # fmt: skip
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
}


def rewritten(sound):
    """Draws the tar with fields of one to three headers overwritten and their checksums made right again."""
    starts = [at for at in range(0, len(sound), 512) if sound[at + 257 : at + 262] == b"ustar"]
    value = st.one_of(
        st.binary(max_size=14),
        st.sampled_from([b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000512", b"77777777777", b"../x.json", b"0"]),
        st.sampled_from([b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"7"]),
    )
    edits = st.lists(st.tuples(st.sampled_from(starts), st.sampled_from(list(FIELDS)), value), min_size=1, max_size=3)
    return edits.map(lambda chosen: _rewritten(sound, chosen))


def _rewritten(sound, edits):
    data = bytearray(sound)
    for start, field, value in edits:
        at, width = FIELDS[field]
        data[start + at : start + at + width] = value[:width].ljust(width, b"\0")
        block = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
        data[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(data)


def everything(path):
    shards = ShardSet(path)
    return [(shards.entry(i), shards.record(i)) for i in range(len(shards))]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_damaged_tars(fuzz, tmp_path, form):
    folder = tmp_path / "shards"
    folder.mkdir()
    tar = folder / "a.tar"
    sound = write_tar(tar, form)

    def read(content):
        index_path(tar).unlink(missing_ok=True)
        tar.write_bytes(content)
        try:
            found = everything(tar)
        finally:
            assert {path.name for path in folder.iterdir()} <= {"a.tar", "a.tar.index.jsonl"}
            assert {path.name for path in tmp_path.iterdir()} == {"shards"}
        for entry, record in found:
            assert not entry.key.startswith("/")
            assert ".." not in entry.key.split("/")
            for offset, size in entry.members.values():
                assert offset + size <= len(content)
            for item in record.media.get("image", ()):
                assert item in content
        return "read"

    assert fuzz(st.one_of(damaged(sound, PIECES), rewritten(sound)), read)["refused"] > 0


def test_damaged_indexes_are_refused_or_say_the_same(fuzz, tmp_path):
    tar = tmp_path / "a.tar"
    write_tar(tar, tarfile.GNU_FORMAT)
    want = everything(tar)
    sound = index_path(tar).read_bytes()

    def read(content):
        index_path(tar).write_bytes(content)
        assert everything(tar) == want
        return "same"

    seen = fuzz(damaged(sound, (b"\n", b'"', b"0", b"}", b"[[[[", sound.split(b"\n")[2] + b"\n")), read)
    assert seen["refused"] > seen["same"]


def test_indexes_that_lie_do_not_lead_out_of_the_tar(fuzz, tmp_path):
    tar = tmp_path / "a.tar"
    size = len(write_tar(tar, tarfile.GNU_FORMAT))
    everything(tar)
    lines = [json.loads(line) for line in index_path(tar).read_text().splitlines()]
    for line in lines:
        del line["crc32"]

    def read(odd):
        odd = odd if isinstance(odd, list) else [odd]
        texts = [signed(line, n) if isinstance(line, dict) else json.dumps(line) for n, line in enumerate(odd)]
        index_path(tar).write_text("\n".join(texts) + "\n")
        for entry, record in everything(tar):
            assert all(offset + length <= size for offset, length in entry.members.values()), "what was read"
            assert record.turns
        return "read"

    assert fuzz(odd_json(lines), read)["refused"] > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda sound: sound[: 512 * 6], "cut off"),
        (lambda sound: sound.rstrip(b"\0") + bytes(512 - len(sound.rstrip(b"\0")) % 512), "damaged or cut off"),
        (lambda sound: sound + sound, "goes on behind its end"),
        (lambda sound: b"".join(PIECES[4:5]) + bytes(1024), "has holes"),
        (lambda sound: header("a.json", size=20 * 2**20) + bytes(1024), "more than the limit"),
        (lambda sound: header("a.json") * 2 + bytes(1024), "stands there twice"),
        (lambda sound: b"".join([header("l", tarfile.GNUTYPE_LONGNAME, 512) + bytes(512)] * 2000), "cut off"),
        (lambda sound: header("\udcff.json") + bytes(1024), "is not UTF-8"),
    ],
)
def test_what_a_tar_must_not_be(tmp_path, content, said):
    tar = tmp_path / "a.tar"
    tar.write_bytes(content(write_tar(tar, tarfile.GNU_FORMAT)))
    with pytest.raises(ValueError, match=said):
        ShardSet(tar)


def test_lines_of_an_index_that_changed_places_are_refused(tmp_path):
    tar = tmp_path / "a.tar"
    write_tar(tar, tarfile.GNU_FORMAT)
    everything(tar)
    first, one, two, three = index_path(tar).read_text().splitlines()
    index_path(tar).write_text("\n".join([first, two, one, three]) + "\n")
    with pytest.raises(ValueError, match=r"line 2: .*checksum.*delete the index"):
        ShardSet(tar).record(0)


def test_an_index_of_before_there_were_checksums_is_read(tmp_path):
    tar = tmp_path / "a.tar"
    write_tar(tar, tarfile.GNU_FORMAT)
    want = [record for _, record in everything(tar)]
    lines = [json.loads(line) for line in index_path(tar).read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    index_path(tar).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record for _, record in everything(tar)] == want
