"""Lines of JSON outlive a cut at every byte of them, whatever letters they hold."""

from __future__ import annotations

import pytest

from mmmoe import lines

FIRST = {"number": 1, "where": "runs/café"}
TORN = {"number": 2, "where": "über\u2028\u0085\ud800 \n日"}
LAST = {"number": 3, "where": "naïve"}


def test_what_was_added_is_read_again(tmp_path):
    for fields in (FIRST, TORN, LAST):
        lines.append(tmp_path / "lines", fields)
    assert list(lines.read(tmp_path / "lines")) == [FIRST, TORN, LAST]


def test_a_cut_at_any_byte_takes_no_other_line_with_it(tmp_path):
    path = tmp_path / "lines"
    lines.append(path, FIRST)
    whole = len(path.read_bytes())
    lines.append(path, TORN, durable=True)
    content = path.read_bytes()
    for end in range(whole, len(content) + 1):
        path.write_bytes(content[:end])
        lines.append(path, LAST)
        torn = [TORN] if end >= len(content) - 1 else []
        assert list(lines.read(path)) == [FIRST, *torn, LAST]


@pytest.mark.parametrize(
    "odd", [b"", b"\n\n", b"[1]\n", b"caf\xc3", b"\xff\n", b'{"number": 1', b"null\n", b"[" * 100_000]
)
def test_what_is_no_object_is_passed_over(tmp_path, odd):
    (tmp_path / "lines").write_bytes(odd)
    assert list(lines.read(tmp_path / "lines")) == []


def test_without_a_file_there_are_no_lines(tmp_path):
    assert list(lines.read(tmp_path / "none")) == []
