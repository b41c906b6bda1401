import io
import json
import tarfile

import pytest
from PIL import Image

from mmmoe.data import tar_members
from mmmoe.data.index import index_path
from mmmoe.data.index_line import signed
from mmmoe.data.shards import ShardSet


def write_tar(path, members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = kind
            archive.addfile(info, io.BytesIO(content))
    return path


def png():
    stream = io.BytesIO()
    Image.new("RGB", (5, 3)).save(stream, "PNG")
    return stream.getvalue()


DIALOGUE = json.dumps({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}).encode()


def test_unindexed_tar_gets_an_index_on_first_pass(packed):
    with_index = ShardSet(packed)
    for path in packed.glob("*.index.jsonl"):
        path.unlink()
    again = ShardSet(str(packed / "*.tar"))
    assert again.digest == with_index.digest
    assert [again.record(i) for i in range(30)] == [with_index.record(i) for i in range(30)]
    assert len(list(packed.glob("*.index.jsonl"))) == 5


def test_caption_tars_of_others(tmp_path):
    write_tar(
        tmp_path / "a.tar", [("x/1.jpg", png()), ("x/1.txt", b" a cat \n"), ("x/2.txt", b"dog"), ("x/2.jpg", png())]
    )
    shards = ShardSet(tmp_path)
    first, second = shards.record(0), shards.record(1)
    assert (first.key, first.turns[0].text, first.turns[1].text) == ("x/1", "<image>", "a cat")
    assert second.turns[1].text == "dog"
    assert shards.entry(1).sizes == ((5, 3),)
    assert shards.record(0, kinds=()).media == {}


def test_truncated_shard_names_expected_and_actual_bytes(packed):
    tar = packed / "shard-000001.tar"
    full = tar.read_bytes()
    tar.write_bytes(full[:-512])
    with pytest.raises(
        ValueError, match=rf"shard-000001.*truncated: expected {len(full)} bytes, found {len(full) - 512}"
    ):
        ShardSet(packed)


def test_unindexed_truncated_tar_is_refused(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("1.json", DIALOGUE), ("2.json", DIALOGUE * 40)])
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut off|truncated"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json"])
def test_paths_that_escape_are_refused(tmp_path, name):
    write_tar(tmp_path / "a.tar", [(name, DIALOGUE)])
    with pytest.raises(ValueError, match="points outside"):
        ShardSet(tmp_path)


def test_links_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.json", b"")], kind=tarfile.SYMTYPE)
    with pytest.raises(ValueError, match="link or a device"):
        ShardSet(tmp_path)


def test_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "MAX_TEXT_BYTES", 10)
    write_tar(tmp_path / "a.tar", [("1.json", DIALOGUE)])
    with pytest.raises(ValueError, match="limit of 10"):
        ShardSet(tmp_path)


def test_index_that_points_beyond_the_tar_is_refused(packed):
    path = index_path(packed / "shard-000000.tar")
    lines = path.read_text().splitlines()
    line = json.loads(lines[1])
    del line["crc32"]
    line["members"]["json"] = [10**9, 50]
    path.write_text("\n".join([lines[0], signed(line, 1), *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="cannot hold"):
        ShardSet(packed).record(0)


def test_a_name_that_is_not_utf8_is_told_as_that(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("caf\xe9.json"), io.BytesIO())
    with pytest.raises(ValueError, match=r"a name in it.* is not UTF-8 \(b'caf\\xe9\.json.*pack it again"):
        ShardSet(path)


def test_compressed_tar_and_split_key_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.json"), io.BytesIO())
    with pytest.raises(ValueError, match="plain tar"):
        ShardSet(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", [("1.json", DIALOGUE), ("2.json", DIALOGUE), ("1.png", png())])
    with pytest.raises(ValueError, match="two places"):
        ShardSet(tmp_path / "b.tar")


@pytest.mark.parametrize("path", ["pipe:cat x.tar", "https://example.org/x.tar"])
def test_only_local_files(path):
    with pytest.raises(ValueError, match="only local files"):
        ShardSet(path)


def test_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ValueError, match="mmmoe data pack"):
        ShardSet(tmp_path)


def test_digest_depends_on_content(packed, tmp_path):
    digest = ShardSet(packed).digest
    (packed / "shard-000004.tar").unlink()
    assert ShardSet(packed).digest != digest
