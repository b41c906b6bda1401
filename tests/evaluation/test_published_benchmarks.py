"""Every declaration in configs/benchmarks reads the form that its benchmark is published in, and bad rows are told."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
import torch
from evaluation_fakes import FakeModel, FakeTemplate, FakeTransform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from published_forms import FORMS as PICTURES
from published_forms import LETTER, document, held, lines, png, separated, table
from published_forms_more import FORMS as MORE

from mmmoe.config.load import load
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec, FieldsSpec
from mmmoe.evaluation.subject import Subject
from mmmoe.log import logger

DECLARED = {path.stem: path for path in (Path(__file__).parents[2] / "configs/benchmarks").glob("*.yaml")}
FORMS = PICTURES | MORE
WHERE = Path("data/local/benchmarks")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, which declared paths are looked for in first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_every_declaration_has_a_form_here():
    assert set(FORMS) == set(DECLARED)


def test_every_benchmark_stands_in_the_table_for_people():
    readme = (DECLARED["vqav2"].parent / "README.md").read_text()
    assert [name for name in DECLARED if f"`{name.removesuffix('_parquet')}`" not in readme] == []


def test_the_example_for_people_works(folder):
    text = (DECLARED["vqav2"].parent / "README.md").read_text()
    (folder / "signs.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    row = text.split("lines such as\n`")[1].split("`")[0]
    write(folder / WHERE / "signs", {"test.jsonl": row.encode(), "photos/00012.jpg": png(1)})
    [question] = load_questions(load(folder / "signs.yaml", BenchmarkSpec)).questions
    assert (question.id, question.answer, question.category) == ("7", "blue", "Oslo")
    assert question.text == f"Which colour?\nA. red\nB. blue{LETTER}"


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_published_form_becomes_questions(name, folder):
    form, spec = FORMS[name], load(DECLARED[name], BenchmarkSpec)
    write(folder / WHERE, form.files)
    exam = load_questions(spec, cache=folder / "cache")
    assert len(exam.questions) == len(form.asked)
    for question, asked in zip(exam.questions, form.asked, strict=True):
        found = (question.id, question.text, question.answers, question.choices, question.category, question.group)
        assert found == (asked.id, asked.text, asked.answers, asked.choices, asked.category, asked.group)
        assert set(question.media) == (set() if asked.sees is None else {asked.kind})
        if asked.sees is not None:
            assert question.media[asked.kind].read_bytes() == asked.sees
    expected = {"mario_eval": 3}
    assert exam.set_aside.count == expected.get(name, 0)


def test_the_answer_is_the_most_frequent_one(folder):
    write(folder / WHERE, FORMS["textvqa"].files)
    [question] = load_questions(load(DECLARED["textvqa"], BenchmarkSpec)).questions
    assert question.answer == "red"
    assert "" in question.answers, "what nobody could read counts among the ten"


# Bad rows


def spec_of(file="t.json", kind="short_answer", bad_rows=None, **fields):
    more = {"kind": kind, "bad_rows": bad_rows, "prompt": "{hint}{question}"}
    return BenchmarkSpec(name="b", file=str(file), fields=FieldsSpec(**fields), **more)


def told(folder, content, name="t.json", **more):
    """Returns what is told of a file of two rows, of which the first is right."""
    write(folder, {name: content, "a.png": png(1), "media/a.png": png(1)})
    exam = load_questions(spec_of(name, **more), cache=folder / "cache")
    assert [question.id for question in exam.questions] == ["1"]
    assert exam.set_aside.count == 1
    [reason] = exam.set_aside.reasons
    return reason


GOOD = {"id": 1, "question": "q", "answer": "a", "image": "a.png", "choices": ["a", "b"]}
BAD = {
    "no column": ({"question": None}, {}, "t.json row 1: the question (question) is empty"),
    "no id": ({"id": ""}, {}, "t.json row 1: the id (id) is empty; every question needs one"),
    "same id": ({"id": 1}, {}, "t.json row 1: id '1' was already used in t.json row 0; ids must differ"),
    "no file": ({"image": "b.png"}, {}, "`image` is relative to `fields.media`"),
    "no image": (
        {"image": None},
        {},
        "t.json row 1: the row has no image; if that is meant, name its column in `having`",
    ),
    "escape": ({"image": "../a.png"}, {}, "t.json row 1: image '../a.png' lies outside the folder"),
    "absolute": ({"image": "/etc/passwd"}, {}, "t.json row 1: image '/etc/passwd' lies outside the folder"),
    "inner escape": ({"image": "x/../../a.png"}, {}, "lies outside the folder"),
    "no name": ({"image": "QUJD" * 100}, {}, "is no file's name; if the column holds it itself, leave `media` out"),
    "no end of it": ({"image": "a\0.png"}, {}, "no image at"),
    "not among": ({"answer": "c"}, {"choices": "choices"}, "answer 'c' is not among the choices ('a', 'b')"),
    "an index of a text that repeats": (
        {"choices": ["a", "b", "b"], "answer": 2},
        {"choices": "choices", "answer_is": "index"},
        "answer '2' is 'b', which stands more than once among the choices ('a', 'b', 'b')",
    ),
    "a letter of a text that repeats": (
        {"choices": ["a", "b", "b"], "answer": "C"},
        {"choices": "choices", "answer_is": "letter"},
        "answer 'C' is 'b', which stands more than once",
    ),
    "no list": (
        {"choices": "a or b"},
        {"choices": "choices"},
        "t.json row 1: column 'choices': a list is wanted, got 'a or b'",
    ),
    "no answer": ({"answer": None}, {}, "t.json row 1: the answer is empty"),
    "no text": ({"question": {"en": "q"}}, {}, "t.json row 1: column 'question': a text is wanted, got {'en': 'q'}"),
    "mark": ({"hint": "<image> <image>"}, {"hint": "hint"}, "the question holds <image> more than once"),
    "no object": (None, {}, "t.json row 1: expected an object, got NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_set_aside_and_told(case, folder):
    change, fields, words = BAD[case]
    second = None if change is None else GOOD | {"id": 2} | change
    first = GOOD | {"answer": {"index": 0, "letter": "A"}.get(fields.get("answer_is", ""), "a")}
    reason = told(folder, document([first, second]), id="id", media="media", image="image", **fields)
    assert words in reason


def test_a_missing_column_is_told_with_those_that_are_there(folder):
    second = {"id": 2, "questoin": "q", "answer": "a"}
    reason = told(folder, document([GOOD, second]), id="id")
    assert reason == ("t.json row 1: no column 'question' (there are id, questoin, answer); did you mean 'questoin'?")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("***", "the cell is not base64"),
        ("aGVsbG8=", "image cannot be decoded (unknown form); replace it or drop the row"),
        ("data:image/png;base64,aGVsbG8=", "image cannot be decoded"),
        ("https://example.org/a.png", "the cell holds the address 'https://example.org/a.png', and nothing is fetched"),
        ({"bytes": None, "path": "a.png"}, "the cell names 'a.png' but does not hold it; give `media`"),
        (["a", "b"], "the cell holds 2 items, a question has one"),
        (7, "the cell holds int, expected bytes, base64 or a mapping with bytes"),
        (None, "the row has no image"),
    ],
)
def test_a_bad_picture_in_a_table_is_told(cell, words, folder):
    rows = [GOOD | {"image": base64.b64encode(png(1)).decode()}, GOOD | {"id": 2, "image": cell}]
    assert words in told(folder, document(rows), id="id", image="image")


def test_an_unreadable_picture_file_is_told(folder):
    write(folder, {"media/broken.png": b"not a picture"})
    second = GOOD | {"id": 2, "image": "broken.png"}
    reason = told(folder, document([GOOD, second]), id="id", media="media", image="image")
    assert reason == "t.json row 1: image broken.png cannot be read (unknown form); replace it or drop the row"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_was_cut_off_is_set_aside(form, folder):
    stream = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, form)
    whole = stream.getvalue()
    rows = [GOOD | {"image": "whole"}, GOOD | {"id": 2, "image": "cut"}]
    write(folder, {"t.json": document(rows), "media/whole": whole, "media/cut": whole[: len(whole) // 2]})
    exam = load_questions(spec_of(id="id", media="media", image="image"))
    assert [question.id for question in exam.questions] == ["1"]
    assert "image cut cannot be read" in exam.set_aside.reasons[0]


def test_bad_lines_of_texts_have_their_numbers(folder):
    broken = lines([GOOD]) + b"\n{broken\n"
    assert told(folder, broken, "t.jsonl", id="id").startswith("t.jsonl line 3: not JSON (")
    cells = separated(["id", "question", "answer"], [[1, "two\nlines", "a"], [2, "q"]], "\t")
    reason = told(folder, cells, "t.tsv", id="id")
    assert reason == "t.tsv line 4: 2 cells, but the first line names 3 columns; mend the line"
    reason = told(folder, b'1\tq "\ta\n2\tq\n', "t.txt", columns=["id", "question", "answer"], id="id")
    assert reason == "t.txt line 2: 2 cells between tabs, expected id, question, answer"


CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["a.png", "B", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner),
    max_leaves=4,
)
COLUMNS = ("id", "question", "answer", "choices", "image", "hint", "group", "box", "split")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150
)
@given(
    row=st.dictionaries(st.sampled_from(COLUMNS), CELLS),
    answer_is=st.sampled_from(["text", "index", "letter", "literal"]),
    inside=st.booleans(),
    boxed=st.booleans(),
)
def test_any_row_is_a_question_or_set_aside(folder, row, answer_is, inside, boxed):
    good = {"id": "good", "question": "q", "image": base64.b64encode(png(1)).decode() if inside else "a.png"}
    good |= {"choices": ["a", "b"], "hint": "", "group": 1, "box": [0, 0, 1, 1], "split": "test"}
    good["answer"] = {"text": "a", "index": 0, "letter": "A", "literal": "['a']"}[answer_is]
    write(folder, {"a.png": png(1), "t.json": document([good, {"split": "test", "id": 7} | row])})
    right = {"answer_is": answer_is, "choices": "choices"}
    if boxed:
        right = {"answer": None, "box": {"column": "box", "form": "xyxy"}}
    spec = spec_of(
        id="id", hint="hint", group="group", group_modulo=5, image="image", where={"split": "test"},
        media=None if inside else ".", **right,
    )  # fmt: skip
    exam = load_questions(spec, cache=folder / "cache")
    assert exam.questions[0].id == "good"
    assert len(exam.questions) + exam.set_aside.count <= 2


def test_one_bad_row_stops_if_asked(folder):
    write(folder, {"t.parquet": table([{"q": "q", "answer": "a"}, {"q": "q", "answer": None}])})
    with pytest.raises(ValueError, match=r"t.parquet has 1 errors:\n  t.parquet row 1: the answer is empty"):
        load_questions(spec_of("t.parquet", question="q", bad_rows="stop"))


def test_all_wrong_rows_are_counted_and_twenty_named(folder):
    rows = [GOOD, *(GOOD | {"id": n, "answer": None} for n in range(2, 32))]
    write(folder, {"t.json": document(rows)})
    exam = load_questions(spec_of(id="id"))
    assert (len(exam.questions), exam.set_aside.count, len(exam.set_aside.reasons)) == (1, 30, 20)
    write(folder, {"t.json": document(rows[1:])})
    with pytest.raises(ValueError, match=r"has 30 errors:(.|\n)*and 10 more"):
        load_questions(spec_of(id="id"))


def test_our_own_lines_stop_unless_asked(folder):
    write(folder, {"t.jsonl": lines([GOOD | {"image": None}, {"id": 2, "question": "q"}])})
    own = {"name": "b", "file": "t.jsonl", "kind": "short_answer"}
    with pytest.raises(ValueError, match="line 2: field 'answer' is missing"):
        load_questions(BenchmarkSpec(**own))
    exam = load_questions(BenchmarkSpec(**own, bad_rows="skip"))
    assert ([question.id for question in exam.questions], exam.set_aside.count) == (["1"], 1)


def test_a_table_without_questions_is_refused(folder):
    write(folder, {"t.json": b"[]", "u.json": document([GOOD])})
    with pytest.raises(ValueError, match="holds no questions; see `where` and `having`"):
        load_questions(spec_of())
    with pytest.raises(ValueError, match="holds no questions"):
        load_questions(spec_of("u.json", where={"question": "other"}))
    with pytest.raises(ValueError, match=r"no column 'hnit' \(there are id, question.*in none of the rows"):
        load_questions(spec_of("u.json", hint="hnit"))


class AnyPicture(FakeTransform):
    """Takes any file, all of one shade."""

    def __call__(self, image):
        return torch.full((3, 2, 2), 7.0)


def test_an_evaluation_asks_what_a_table_holds_and_tells_what_it_set_aside(folder, caplog):
    cells = [held(0), held(1), held(2), {"bytes": b"x", "path": None}]
    rows = [{"question": f"q{n}", "answer": "7", "image": cell} for n, cell in enumerate(cells)]
    write(folder, {"t.parquet": table(rows)})
    subject = Subject(FakeModel(), FakeTemplate(), {"image": AnyPicture()}, torch.device("cpu"))
    spec = EvaluationSpec(benchmarks=[spec_of("t.parquet", image="image")], bootstrap=100)
    logger().addHandler(caplog.handler)
    try:
        [row] = evaluate(subject, spec, folder / "out", "trained", cache=folder / "cache")
    finally:
        logger().removeHandler(caplog.handler)
    assert (row.n, row.score) == (3, 1.0)
    assert "benchmark b: 1 rows set aside\n  t.parquet row 3: image cannot be decoded" in caplog.text
    assert len(list((folder / "cache/table_media").rglob("*.png"))) == 3


def test_pictures_in_a_table_need_a_cache(folder):
    write(folder, {"t.parquet": table([{"question": "q", "answer": "a", "image": held(1)}])})
    with pytest.raises(ValueError, match="no cache was given"):
        load_questions(spec_of("t.parquet", image="image"))
