"""LLaVA's JSON, damaged or hostile: usable rows whose files lie in the folder, or one message with every reason."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from mutations import damaged, odd_json
from PIL import Image

from mmmoe.data.rows import read_rows

ROWS = [
    {
        "id": "pic.1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dot"}],
    },
    {
        "id": 7,
        "image": ["a.png", "a.png"],
        "routing_weights": [0, 1],
        "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "two"}],
    },
    {
        "video": ["a.png", "a.png"],
        "conversations": [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "still"}],
    },
]


def test_damaged_rows(fuzz, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    Image.new("RGB", (2, 2)).save(media / "a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    path = tmp_path / "rows.json"
    names = ("../outside.png", "\0", "a.png/..", "x" * 300 + ".png", "~/a.png", str(tmp_path / "outside.png"))
    pieces = (
        *(name.encode() for name in names),
        b"<image>",
        b"\\ud800",
        b"[" * 2000,
        b'{"from":',
        b'"voice":',
        b"9" * 30,
    )

    def read(content):
        path.write_bytes(content)
        rows = read_rows(path, media, "d", "speech")
        assert len({row.key for row in rows}) == len(rows)
        for row in rows:
            assert set(json.loads(row.content)) <= {"id", "conversations", "domain", "routing_weights"}
            assert all(file.resolve().is_relative_to(media) and file.is_file() for _, file in row.members())
        return "read"

    text = json.dumps(ROWS, indent=1).encode()
    odd = odd_json(ROWS).map(lambda rows: json.dumps(rows).encode())
    seen = fuzz(st.one_of(damaged(text, pieces), odd), read)
    assert seen["read"] > 0
    assert seen["refused"] > seen["read"] / 20
