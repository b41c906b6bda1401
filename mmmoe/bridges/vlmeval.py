"""Answers of an evaluation as VLMEvalKit files predictions, so that its scripts can judge them again.

Its questions come in by declarations (configs/benchmarks/vlmeval_choice.yaml and vlmeval_answer.yaml). A prediction
file has the columns of such a table but for the picture, and `prediction`. It is named after the model and the
benchmark, as `VLMEvalKit/outputs/MODEL/MODEL_BENCHMARK.xlsx` is. The question is the one that the model was asked, with
the wording of our prompt, since an answer file keeps no other.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmmoe.evaluation.answers import Answer, read_answers
from mmmoe.evaluation.prompts import letter
from mmmoe.evaluation.shares import write_text
from mmmoe.log import logger

Row = dict[str, str | int]
LETTERS = tuple(letter(place) for place in range(26))
ORDER = ("index", "question", *LETTERS, "answer", "category", "prediction")
"""Columns, of which only those are written that some row has."""
NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""What a cell of a spreadsheet cannot hold."""
LONGEST_CELL = 32_767
"""Letters that a cell of a spreadsheet can hold."""


def write_predictions(answers: Path, out: Path) -> list[Path]:
    """Writes a file a benchmark: a spreadsheet where openpyxl is installed, else tab-separated text.

    Args:
        answers: The answers of one variant, such as runs/NAME/evaluation/trained.
        out: Folder of the files; its name is that of the model.

    Raises:
        ValueError: There are no answers there, or they are of another form.
    """
    files = sorted(answers.glob("*.jsonl"))
    if not files:
        raise ValueError(f"no answers in {answers}; name the folder of a variant, e.g. runs/NAME/evaluation/trained")
    as_sheet = find_spec("openpyxl") is not None
    if not as_sheet:
        logger().info("openpyxl is not installed: predictions are written as .tsv, which VLMEvalKit reads as well")
    model = out.resolve().name
    written = []
    for file in files:
        path = out / f"{model}_{file.stem}.{'xlsx' if as_sheet else 'tsv'}"
        rows = rows_of_predictions(file)
        (_write_sheet if as_sheet else _write_text)(path, rows)
        written.append(path)
    return written


def rows_of_predictions(file: Path) -> list[Row]:
    """Returns the rows of a benchmark's file of answers in VLMEvalKit's columns, all with the same ones."""
    rows = [_row(answer) for answer in read_answers(file)]
    columns = dict.fromkeys(name for name in ORDER if any(name in row for row in rows))
    return [{name: row.get(name, "") for name in columns} for row in rows]


def _row(answer: Answer) -> Row:
    row: Row = {"index": int(answer.id) if answer.id.isdecimal() else answer.id, "question": answer.question}
    row |= dict(zip(LETTERS, answer.choices, strict=False))
    row["answer"] = _lettered(answer.answer, answer) or _answers(answer)
    if answer.category:
        row["category"] = answer.category
    # A choice that was taken by its likelihood is its letter; what was generated is handed on as it stands.
    row["prediction"] = (_lettered(answer.prediction, answer) if answer.scores else "") or answer.prediction
    return row


def _lettered(text: str, answer: Answer) -> str:
    """Returns the letter of a choice, nothing where the text is none of those that have one."""
    choices = answer.choices[: len(LETTERS)]
    return LETTERS[choices.index(text)] if text in choices else ""


def _answers(answer: Answer) -> str:
    """Returns the right answer, of several the list in Python's writing, as its tables have it."""
    return repr(answer.answers) if len(answer.answers) > 1 else answer.answer


def _write_text(path: Path, rows: Sequence[Row]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["index"], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def _write_sheet(path: Path, rows: Sequence[Row]) -> None:
    # Only in the extra `lmms`, and asked for above.
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(list(rows[0]) if rows else ["index"])
    for row in rows:
        cells = []
        for value in row.values():
            cell = WriteOnlyCell(sheet, value if isinstance(value, int) else _storable(value))
            # A text that begins with "=" would be a formula.
            cell.data_type = "n" if isinstance(value, int) else "s"
            cells.append(cell)
        sheet.append(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.xlsx")
    book.save(partial)
    partial.replace(path)


def _storable(text: str) -> str:
    return NOT_IN_XML.sub("", text)[:LONGEST_CELL]
