import json
import logging

import pytest
from data_media import dialogue, picture, write_tar

from mmmoe.config.ids import MEDIA_IDS, MEDIA_MARKS
from mmmoe.data.index import index_path
from mmmoe.data.media import KINDS, compare_marks, count_marks, in_words, media_members, member_name
from mmmoe.data.preview import preview
from mmmoe.data.shards import ShardSet


def test_every_kind_has_one_mark_and_one_id():
    assert set(KINDS) == set(MEDIA_IDS) == set(MEDIA_MARKS)
    assert len(set(MEDIA_IDS.values())) == len(set(MEDIA_MARKS.values())) == 4
    assert (MEDIA_IDS["image"], MEDIA_IDS["audio"], MEDIA_IDS["video"], MEDIA_IDS["speech"]) == (-200, -300, -400, -500)


def test_members_are_read_as_they_are_named():
    names = [
        member_name("image", 0, "png"), member_name("image", 10, "jpg"), member_name("image", 2, "png"),
        member_name("speech", 0, "ogg"), member_name("audio", 1, "wav"), member_name("video", 1, "mp4"),
        *(member_name("video", 0, "png", frame) for frame in (10, 2, 0)),
    ]  # fmt: skip
    assert names == ["0.png", "10.jpg", "2.png", "0.speech.ogg", "1.audio.wav", "1.video.mp4", *names[6:]]
    assert names[6:] == ["0.video.010.png", "0.video.002.png", "0.video.000.png"]
    assert media_members([*names, "json", "cls"]) == {
        "image": (("0.png",), ("2.png",), ("10.jpg",)),
        "video": (("0.video.000.png", "0.video.002.png", "0.video.010.png"), ("1.video.mp4",)),
        "speech": (("0.speech.ogg",),),
        "audio": (("1.audio.wav",),),
    }


def test_tars_of_others():
    found = media_members(["flac", "a.mp4", "JPG", "gif", "speech.mp3", "0.video.0.png", "video.txt", "npy"])
    assert found == {
        "image": (("JPG",), ("gif",)),
        "video": (("0.video.0.png",), ("a.mp4",)),
        "speech": (("speech.mp3",),),
        "audio": (("flac",),),
    }


def test_marks_against_items():
    texts = ["<image>\n<speech> and <image>", "<video>"]
    assert count_marks(texts) == {"image": 2, "speech": 1, "video": 1}
    compare_marks(texts, {"image": 2, "speech": 1, "video": 1, "audio": 0})
    with pytest.raises(ValueError, match="1 <speech> in the text, but 0 speech files"):
        compare_marks(texts, {"image": 2, "video": 1})
    with pytest.raises(ValueError, match="0 <audio> in the text, but 3 audio files"):
        compare_marks(texts, {"image": 2, "speech": 1, "video": 1, "audio": 3})
    assert in_words({"video": 3, "image": 2000}) == "2,000 images, 3 videos"
    assert in_words({}) == "no media"


@pytest.fixture
def mixed(tmp_path):
    frames = [(f"b.0.video.{n:03d}.png", picture(10 * n)) for n in range(3)]
    return write_tar(
        tmp_path / "mixed.tar",
        [
            ("a.json", dialogue("image", "speech")), ("a.0.png", picture(1)), ("a.0.speech.wav", b"spoken"),
            ("b.json", dialogue("video")), *frames,
            ("c.txt", b"rain"), ("c.flac", b"heard"),
            ("d.json", dialogue()),
            ("e.json", dialogue("speech", "speech")), ("e.1.speech.wav", b"two"), ("e.0.speech.wav", b"one"),
        ],
    )  # fmt: skip


def test_records_and_index_of_all_kinds(mixed):
    shards = ShardSet(mixed)
    assert shards.shards[0].header.items == {"image": 1, "video": 1, "speech": 3, "audio": 1}
    entries = [shards.entry(number) for number in range(5)]
    assert [entry.modalities for entry in entries] == [
        ("image", "speech", "text"), ("video", "text"), ("audio", "text"), ("text",), ("speech", "text")
    ]  # fmt: skip
    assert [entry.first["speech"] for entry in entries] == [0, 1, 1, 1, 1]
    assert shards.record(0).media == {"image": (picture(1),), "speech": (b"spoken",)}
    assert shards.record(0, kinds=("speech",)).media == {"speech": (b"spoken",)}
    assert shards.record(1).media == {"video": ((picture(0), picture(10), picture(20)),)}
    assert shards.record(2).media == {"audio": (b"heard",)}
    assert shards.record(2).turns[0].text == "<audio>"
    assert shards.record(4).media == {"speech": (b"one", b"two")}


def test_preview_names_what_is_there(mixed):
    cells = list(preview(mixed, 5).columns[2].cells)
    assert [str(cell) for cell in cells] == ["8x8, speech", "video of 3 frames", "audio", "", "speech, speech"]


def make_old(path):
    """Writes an index as version 1 did, which knew images alone."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = {key: header[key] for key in ("bytes", "sha256", "count", "origin")} | {"version": 1, "images": 1}
    for line in lines:
        line["first_image"] = line.pop("first")["image"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [old, *lines]))


def test_an_older_index_is_made_anew(mixed, caplog):
    before = ShardSet(mixed)
    fresh = index_path(mixed).read_bytes()
    make_old(index_path(mixed))
    with caplog.at_level(logging.INFO):
        again = ShardSet(mixed)
    assert "older version" in caplog.text
    assert index_path(mixed).read_bytes() == fresh
    assert [again.record(n) for n in range(5)] == [before.record(n) for n in range(5)]


def test_an_older_index_does_not_vouch_for_another_tar(mixed):
    ShardSet(mixed)
    make_old(index_path(mixed))
    whole = mixed.read_bytes()
    mixed.write_bytes(whole.replace(b"spoken", b"broken"))
    with pytest.raises(ValueError, match="its index says"):
        ShardSet(mixed)
    mixed.write_bytes(whole[:-512])
    with pytest.raises(ValueError, match="truncated"):
        ShardSet(mixed)
