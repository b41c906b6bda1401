"""Answers leave in VLMEvalKit's columns, as spreadsheet or text, and its tables with lists of answers are read."""

import base64
import csv
from unittest import mock

import pytest
from published_forms import png, separated

from mmmoe.bridges import vlmeval
from mmmoe.bridges.vlmeval import write_predictions
from mmmoe.config.load import load
from mmmoe.evaluation.answers import Answer, write_answers
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.paths import project_root

NO_SHEET = mock.patch.object(vlmeval, "find_spec", return_value=None)
CHOICES = ["a round", "a square"]
ANSWERS = [
    {"id": "7", "question": "Which\nshape?", "answer": "a square", "choices": CHOICES, "prediction": "(B)",
     "category": "x"},
    {"id": "8", "question": "Which?", "answer": "a round", "choices": CHOICES, "prediction": "a square",
     "scores": [-2.0, -1.0]},
    {"id": "p-9", "question": "=1+1\tor", "answer": "2", "answers": ["2", "2", "two"], "prediction": "=SUM(A1)\x07"},
]  # fmt: skip
EXPECTED = [
    {"index": 7, "question": "Which\nshape?", "A": "a round", "B": "a square", "answer": "B", "category": "x",
     "prediction": "(B)"},
    {"index": 8, "question": "Which?", "A": "a round", "B": "a square", "answer": "A", "category": "",
     "prediction": "B"},
    {"index": "p-9", "question": "=1+1\tor", "A": "", "B": "", "answer": "['2', '2', 'two']", "category": "",
     "prediction": "=SUM(A1)\x07"},
]  # fmt: skip


@pytest.fixture
def answers(tmp_path):
    folder = tmp_path / "evaluation/trained"
    folder.mkdir(parents=True)
    given = {"image": None, "correct": False, "choices": [], "scores": [], "domain": "general"}
    write_answers(folder / "shapes.jsonl", [Answer(**given | row) for row in ANSWERS])
    return folder


def test_text_where_there_is_no_openpyxl(answers, tmp_path):
    with NO_SHEET:
        [path] = write_predictions(answers, tmp_path / "my-model")
    assert path == tmp_path / "my-model/my-model_shapes.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert rows == [{name: str(value) for name, value in row.items()} for row in EXPECTED]
    assert list(rows[0]) == ["index", "question", "A", "B", "answer", "category", "prediction"]


def test_a_spreadsheet_holds_texts_and_no_formulas(answers, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed; `make lmms` installs it")
    [path] = write_predictions(answers, tmp_path / "my-model")
    assert path.name == "my-model_shapes.xlsx"
    sheet = openpyxl.load_workbook(path).active
    names, *rows = sheet.iter_rows()
    found = [dict(zip([name.value for name in names], [cell.value or "" for cell in row], strict=True)) for row in rows]
    # A control character has no place in a sheet.
    assert found == [*EXPECTED[:2], EXPECTED[2] | {"prediction": "=SUM(A1)"}]
    assert {cell.data_type for row in rows for cell in row if cell.value} == {"n", "s"}


def test_what_is_no_folder_of_answers_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no answers in .*; name the folder of a variant"):
        write_predictions(tmp_path, tmp_path / "m")
    (tmp_path / "a.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl line 1 lacks answer, "):
        write_predictions(tmp_path, tmp_path / "m")
    (tmp_path / "a.jsonl").write_text("[1]\n{\n")
    with pytest.raises(ValueError, match=r"a\.jsonl line 1 is no answer"):
        write_predictions(tmp_path, tmp_path / "m")


def test_a_table_with_lists_of_answers_is_read_by_its_declaration(tmp_path):
    cell = base64.b64encode(png(1)).decode()
    names = ["index", "image", "question", "answer"]
    (tmp_path / "t.tsv").write_bytes(separated(names, [[0, cell, "Who?", str(["nokia", "it's"])]], "\t"))
    base = project_root() / "configs/benchmarks/vlmeval_answer.yaml"
    (tmp_path / "suite.yaml").write_text(
        f"benchmarks: [{{base: {base}, name: own, file: {tmp_path}/t.tsv, metric: vqa, "
        "fields: {answer_is: literal}}]\n"
    )
    [benchmark] = load(tmp_path / "suite.yaml", EvaluationSpec).benchmarks
    [question] = load_questions(benchmark, cache=tmp_path).questions
    assert (benchmark.name, question.answers) == ("own", ("nokia", "it's"))
