import json

import pytest
from data_media import compressed, film, picture, tone, wav

from mmmoe.data.check import check
from mmmoe.data.pack import pack
from mmmoe.data.shards import ShardSet

TURN = {"from": "gpt", "value": "yes"}


@pytest.fixture
def folder(tmp_path):
    files = tmp_path / "files"
    (files / "frames").mkdir(parents=True)
    (files / "a.wav").write_bytes(wav(tone(0.2)))
    (files / "b.m4a").write_bytes(compressed(tone(0.3)))
    (files / "c.mp4").write_bytes(film(range(0, 200, 10)))
    (files / "d.png").write_bytes(picture(9))
    for number in range(3):
        (files / "frames" / f"{number}.jpg").write_bytes(picture(50 * number, kind="JPEG"))
    return files


def rows_of(tmp_path, *rows):
    (tmp_path / "rows.json").write_text(
        json.dumps([{**row, "conversations": [{"from": "human", "value": row.pop("says")}, TURN]} for row in rows])
    )
    return tmp_path / "rows.json"


FRAMES = ["frames/2.jpg", "frames/0.jpg", "frames/1.jpg"]
GOOD = [
    {"id": "speech", "speech": "a.wav", "says": "<speech>\nWhat colour ?"},
    {"id": "two", "speech": ["b.m4a", "a.wav"], "image": "d.png", "says": "<image> <speech> or <speech>"},
    {"id": "film", "video": "c.mp4", "says": "<video>"},
    {"id": "frames", "video": FRAMES, "audio": "a.wav", "says": "<video> <audio>"},
    {"id": "films", "video": ["c.mp4", FRAMES[:2], "c.mp4"], "says": "<video> <video> <video>"},
    {"id": "text", "says": "What colour ?"},
]


def test_every_kind_comes_back(folder, tmp_path):
    report = pack(rows_of(tmp_path, *map(dict, GOOD)), folder, tmp_path / "out", samples_per_shard=2, domain="d")
    assert (report.samples, report.items) == (6, {"image": 1, "video": 5, "speech": 3, "audio": 1})

    def content(name):
        return (folder / name).read_bytes()

    frames = tuple(content(name) for name in FRAMES)
    shards = ShardSet(tmp_path / "out")
    assert [shards.record(number).media for number in range(6)] == [
        {"speech": (content("a.wav"),)},
        {"image": (content("d.png"),), "speech": (content("b.m4a"), content("a.wav"))},
        {"video": (content("c.mp4"),)},
        {"video": (frames,), "audio": (content("a.wav"),)},
        {"video": (content("c.mp4"), frames[:2], content("c.mp4"))},
        {},
    ]
    assert {"0.speech.m4a", "1.speech.wav", "0.png"} < set(shards.entry(1).members)
    assert {"1.video.000.jpg", "1.video.001.jpg", "2.video.mp4"} < set(shards.entry(4).members)
    assert check(tmp_path / "out").is_sound
    again = pack(rows_of(tmp_path, *map(dict, GOOD)), folder, tmp_path / "out", samples_per_shard=2, domain="d")
    assert again.kept == 3


@pytest.mark.parametrize("voice", ["audio", "speech"])
def test_uni_moes_field_for_sound(folder, tmp_path, voice):
    rows = rows_of(tmp_path, {"id": 1, "voice": ["a.wav"], "image": "d.png", "says": "<image>\n<audio>\nWhat ?"})
    pack(rows, folder, tmp_path / "out", samples_per_shard=2, domain="d", voice=voice)
    record = ShardSet(tmp_path / "out").record(0)
    assert set(record.media) == {"image", voice}
    assert record.turns[0].text == f"<image>\n<{voice}>\nWhat ?"


def test_every_unusable_row_is_told(folder, tmp_path):
    (folder / "empty.wav").write_bytes(wav(tone(0)))
    (folder / "cut.wav").write_bytes(wav(tone(1.0))[:5000])
    (folder / "words.mp4").write_bytes(b"no film")
    (tmp_path / "out.wav").write_bytes(wav(tone(0.1)))
    bad = [
        ({"speech": "gone.wav", "says": "<speech>"}, "gone.wav does not exist"),
        ({"speech": "c.mp4", "says": "<speech>"}, "does not end in one of flac"),
        ({"video": "d.png", "says": "<video>"}, "does not end in one of avi"),
        ({"audio": "../out.wav", "says": "<audio>"}, "outside"),
        ({"audio": "a.wav", "says": "<speech>"}, "1 <speech> in the text, but 0 speech files"),
        ({"audio": ["a.wav", "a.wav"], "says": "<audio>"}, "1 <audio> in the text, but 2 audio files"),
        ({"video": [[]], "says": "<video>"}, "no frames"),
        ({"video": 3, "says": "<video>"}, "3 is not a path"),
        ({"voice": "a.wav", "audio": "a.wav", "says": "<audio>"}, "both voice and audio"),
    ]
    with pytest.raises(ValueError, match="9 unusable rows") as caught:
        pack(rows_of(tmp_path, *(row for row, _ in bad)), folder, tmp_path / "o", samples_per_shard=9, domain="")
    lines = str(caught.value).splitlines()[1:]
    for number, (line, (_, reason)) in enumerate(zip(lines, bad, strict=True)):
        assert line.strip().startswith(f"row {number}:")
        assert reason in line
    rows = [{kind: name, "says": f"<{kind}>"} for kind, name in
            (("speech", "empty.wav"), ("audio", "cut.wav"), ("video", "words.mp4"))]  # fmt: skip
    with pytest.raises(ValueError, match="3 unusable rows") as caught:
        pack(rows_of(tmp_path, *rows), folder, tmp_path / "o", samples_per_shard=9, domain="")
    for reason in ("no samples", "is cut off", "video cannot be decoded"):
        assert reason in str(caught.value)


def test_check_decodes_sound_and_film(folder, tmp_path):
    pack(rows_of(tmp_path, *map(dict, GOOD[:3])), folder, tmp_path / "out", samples_per_shard=9, domain="d")
    tar = tmp_path / "out" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    shards = ShardSet(tar)
    for number, member in ((0, "0.speech.wav"), (2, "0.video.mp4")):
        offset, size = shards.entry(number).members[member]
        data[offset : offset + size] = bytes(size)
    tar.write_bytes(bytes(data))
    problems = check(tar).problems
    assert len(problems) == 3
    assert "SHA-256" in problems[0].reason
    assert [problem.reason.split(" ")[0] for problem in problems[1:]] == ["sound", "video"]
