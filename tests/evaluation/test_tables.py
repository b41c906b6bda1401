"""Rows of tables in every form, how columns are named, and what is told of files that are none."""

from __future__ import annotations

import math
from contextlib import suppress

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_forms import document, lines, separated, table

from mmmoe.evaluation.columns import MISSING, as_text, as_texts, look_up, missing, parse_list, value_of
from mmmoe.evaluation.spec import FieldsSpec
from mmmoe.evaluation.tables import PARQUET_ROWS, files_of, read_table, rows_of

ROWS = [{"id": 1, "q": "one"}, {"id": 2, "q": "two"}]


def read(tmp_path, content, name, *args):
    (tmp_path / name).write_bytes(content)
    return [(row.place, row.problem or dict(row.values)) for row in read_table(tmp_path / name, *args)]


def test_the_same_rows_in_every_form(tmp_path):
    assert read(tmp_path, document(ROWS), "a.json") == [("row 0", ROWS[0]), ("row 1", ROWS[1])]
    assert read(tmp_path, document({"data": {"val": ROWS}}), "b.json", "data.val") == [*enumerate_rows("row", 0)]
    assert read(tmp_path, lines(ROWS), "c.jsonl") == [*enumerate_rows("line", 1)]
    assert read(tmp_path, lines(ROWS), "d.json") == [*enumerate_rows("line", 1)], "lines that are called json"
    assert read(tmp_path, table(ROWS), "e.parquet") == [*enumerate_rows("row", 0)]
    texts = [{"id": "1", "q": "one"}, {"id": "2", "q": "two"}]
    for name, mark in (("f.tsv", "\t"), ("g.csv", ",")):
        content = separated(["id", "q"], [["1", "one"], ["2", "two"]], mark)
        assert read(tmp_path, content, name) == [("line 2", texts[0]), ("line 3", texts[1])]
    assert read(tmp_path, b"1\tone\r\n\n2\ttwo", "h.txt", None, ["id", "q"]) == [
        ("line 1", texts[0]),
        ("line 3", texts[1]),
    ]


def enumerate_rows(word, first):
    return ((f"{word} {number}", row) for number, row in enumerate(ROWS, start=first))


def test_a_mapping_gives_keys_and_one_object_is_one_row(tmp_path):
    keyed = read(tmp_path, document({"7": ROWS[0], "8": ROWS[1]}), "a.json")
    assert keyed == [("row 0", ROWS[0] | {"@key": "7"}), ("row 1", ROWS[1] | {"@key": "8"})]
    assert read(tmp_path, document({"q": "one", "deep": {"x": 1}}), "b.json") == [
        ("row 0", {"q": "one", "deep": {"x": 1}})
    ]


def test_a_byte_order_mark_is_no_letter(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfid,q\n1,one\n", "a.csv") == [("line 2", {"id": "1", "q": "one"})]
    assert read(tmp_path, b"\xef\xbb\xbf" + document(ROWS), "a.json")[0] == ("row 0", ROWS[0])


def test_a_cell_may_be_longer_than_csv_takes_unasked(tmp_path):
    picture = "A" * 200_000
    assert read(tmp_path, separated(["image"], [[picture]], "\t"), "a.tsv")[0][1] == {"image": picture}


def test_parquet_is_read_by_few_rows(tmp_path, monkeypatch):
    rows = [{"id": number} for number in range(3 * PARQUET_ROWS)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1000)
    sizes, iterate = [], parquet.ParquetFile.iter_batches

    def counted(self, **more):
        for batch in iterate(self, **more):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    found = read_table(tmp_path / "a.parquet")
    assert dict(next(found).values) == {"id": 0}
    assert sizes == [PARQUET_ROWS], "no more was read than was asked for"
    assert [row.values["id"] for row in found] == list(range(1, len(rows)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{broken", "a.json is not JSON .* in line 1"),
        ("a.json", b"[1] [2]", None),
        ("a.parquet", b"PAR1 and no more", "a.parquet cannot be read as parquet"),
        ("a.json", b"\xff\xfe", "a.json is not UTF-8"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl is not UTF-8"),
        ("a.tsv", b"id\n\xff\xfe", "a.tsv line .*: cannot be read"),
        ("a.xlsx", b"", "does not end in .json, .jsonl, .parquet"),
        ("a.txt", b"x", "has no first line of names; give `fields.columns`"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    if words is None:
        [row] = read_table(tmp_path / name)
        assert "not JSON" in str(row.problem)
        return
    with pytest.raises(ValueError, match=words):
        list(read_table(tmp_path / name))


@pytest.mark.parametrize("line", [b"[" * 100_000, b"1" * 5000, b'{"a": ' * 100_000])
def test_lines_that_are_too_much_are_told(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + lines(ROWS))
    first, *others = read_table(tmp_path / "a.jsonl")
    assert str(first.problem).startswith("not read as JSON (")
    assert [row.values for row in others] == ROWS
    (tmp_path / "a.json").write_bytes(line)
    with suppress(ValueError):
        assert all(row.problem for row in read_table(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.tsv", "a.csv", "a.txt", "a.parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.binary(max_size=60), cut=st.integers(0, 400), at=st.integers(0, 400))
def test_any_bytes_are_rows_or_refused(tmp_path, name, data, cut, at):
    whole = table(ROWS) if name == "a.parquet" else lines(ROWS)
    for content in (data, whole[:cut], whole[:at] + data + whole[at:]):
        (tmp_path / name).write_bytes(content)
        with suppress(ValueError):
            for row in read_table(tmp_path / name, None, ["id", "q"]):
                assert row.problem or row.values is not None


def test_a_path_to_rows_that_is_not_there(tmp_path):
    (tmp_path / "a.json").write_bytes(document({"questions": ROWS}))
    with pytest.raises(ValueError, match=r"fields.rows: no column 'question' \(there are questions\); did you mean"):
        list(read_table(tmp_path / "a.json", "question"))


def test_files_by_pattern_by_list_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("t-01.json", "t-00.json", "u.json"):
        (tmp_path / "sub" / name).write_bytes(document(ROWS))
    assert [name for name, _ in files_of("sub/t-*.json")] == ["t-00", "t-01"]
    assert [path.name for _, path in files_of(["sub/u.json", "sub/t-0[1].json"])] == ["u.json", "t-01.json"]
    assert [name for name, _ in files_of({"val": "sub/u.json", "test": "sub/t-*"})] == ["val", "test", "test"]
    with pytest.raises(ValueError, match=r"no file at .*v-\*.json; get the data or correct `file`"):
        files_of(["sub/u.json", "sub/v-*.json"])
    rows = list(rows_of({"val": "sub/u.json", "test": "sub/t-00.json"}, FieldsSpec()))
    assert [(row.values["@file"], row.values["@row"], row.place) for row in rows] == [
        ("val", 0, "row 0"), ("val", 1, "row 1"), ("test", 2, "row 0"), ("test", 3, "row 1"),
    ]  # fmt: skip


def test_a_second_table_stands_beside_the_first(tmp_path):
    (tmp_path / "q.json").write_bytes(
        document({"questions": [{"id": 1, "q": "one"}, {"id": 3, "q": "three"}, {"q": ""}]})
    )
    (tmp_path / "a.json").write_bytes(document({"annotations": [{"of": "1", "id": "own", "answer": "yes"}]}))
    join = {"file": str(tmp_path / "a.json"), "rows": "annotations", "by": "id", "to": "of"}
    first, second, third = rows_of(str(tmp_path / "q.json"), FieldsSpec(rows="questions", join=join))
    assert (first.values["answer"], first.values["id"]) == ("yes", 1)
    assert str(second.problem).endswith("has of 3; get both files of one release")
    assert str(third.problem).startswith("no column 'id' (there are q)")
    (tmp_path / "a.json").write_bytes(document({"annotations": [{"answer": "yes"}]}))
    with pytest.raises(ValueError, match="row 0: no column 'of'"):
        list(rows_of(str(tmp_path / "q.json"), FieldsSpec(rows="questions", join=join)))


# Columns


ROW = {"a": {"b": [{"c": 1}, {"c": 2}]}, "x.y": 5, "n": 7, "t": "0012", "none": None, "@file": "f"}


def test_paths_go_into_mappings_and_through_lists():
    assert look_up(ROW, "a.b.c") == [1, 2]
    assert look_up(ROW, "x.y") == 5, "a column may have a dot in its name"
    assert look_up(ROW, "a.z") is MISSING
    assert look_up(ROW, "a.b.z") is MISSING
    assert look_up(ROW, "n.z") is MISSING


def test_texts_are_filled_in():
    assert value_of(ROW, "COCO_{n:012d}.jpg") == "COCO_000000000007.jpg"
    assert value_of(ROW, "{t:06d}") == "000012", "a number written as text"
    assert value_of(ROW, "{@file}/{n}{none}") == "f/7"
    assert value_of(ROW, "{{n}}{n}") == "{n}7"
    for source, words in (("{t:.2f}", "does not take"), ("{a}", "a text is wanted"), ("{m}", "no column 'm'")):
        with pytest.raises(ValueError, match=words):
            value_of(ROW, source)


def test_no_attribute_of_a_value_is_reached():
    with pytest.raises(ValueError, match="no column"):
        value_of(ROW, "{n.__class__}")
    with pytest.raises(ValueError, match="no column"):
        value_of(ROW, "{n[0]}")


def test_what_counts_as_empty():
    assert [as_text(cell) for cell in (None, math.nan, " ", MISSING)] == [""] * 4
    assert [as_text(cell) for cell in (0, 1.5, "nan", " a ")] == ["0", "1.5", "nan", " a "]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("['a', 'b']", ("a", "b")),
        ("['a' 'b']", ("a", "b")),
        ("[\"it's\" 'b\\'c'\n 'd']", ("it's", "b'c", "d")),
        ("('a',)", ("a",)),
        ("[1, 2]", ("1", "2")),
        ("[]", ()),
        (["a", None], ("a", "")),
    ],
)
def test_lists_in_python_s_and_numpy_s_writing(text, found):
    assert as_texts(text) == found


@pytest.mark.parametrize(
    "text", ["a", "", "[", "[a]", "__import__('os')", "['a'].pop()", "[open('x')]", "{'a': 1}", "[" * 9999 + "]"]
)
def test_nothing_else_is_a_list(text):
    with pytest.raises(ValueError, match="a list is wanted"):
        parse_list(text)


@given(st.lists(st.text(max_size=8), max_size=5))
def test_any_list_of_texts_is_read_back(texts):
    assert parse_list(repr(texts)) == texts


@given(st.text(max_size=30))
def test_any_text_is_a_list_or_refused(text):
    with suppress(ValueError):
        assert isinstance(parse_list(text), list)


def test_a_missing_column_among_many_is_not_told_at_length():
    assert missing("qestion", [*(f"c{n}" for n in range(40)), "question", "@row"]).endswith(
        "; did you mean 'question'?"
    )
    assert len(missing("zzz", [f"c{n}" for n in range(400)])) < 250
