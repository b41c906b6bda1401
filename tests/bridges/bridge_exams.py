"""Small exams of hard cases in published forms, and a model that says a case's text by the picture's shade."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from evaluation_fakes import FakeModel, FakeTemplate, FakeTransform
from PIL import Image
from published_forms import held, table

from mmmoe.config.ids import IMAGE_ID
from mmmoe.config.load import load
from mmmoe.evaluation.spec import BenchmarkSpec
from mmmoe.evaluation.subject import Subject

BENCHMARKS = Path(__file__).parents[2] / "configs/benchmarks"
TEN = ["red"] * 3 + ["dark red"] * 2 + ["maroon"] * 5


class Shade(FakeTransform):
    """The red of a picture's first pixel."""

    def __call__(self, image):
        with Image.open(io.BytesIO(image)) as picture:
            return torch.full((3, 2, 2), float(picture.convert("RGB").getpixel((0, 0))[0]))


class Parrot(FakeModel):
    """Says a text a picture, whatever it is asked."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def generate(self, input_ids_BT, attention_mask_BT, features, *, max_new_tokens, eos_id, pad_id):
        assert all(int((ids == IMAGE_ID).sum()) == 1 for ids in input_ids_BT)
        shades = features["image"][:, 0, 0].tolist()
        return [[ord(letter) for letter in self.said[int(shade)]] for shade in shades]


def parrot(said):
    return Subject(Parrot(said), FakeTemplate(), {"image": Shade()}, torch.device("cpu"))


@dataclass(frozen=True)
class Case:
    said: str
    columns: dict = field(default_factory=dict)


def people(said, answers):
    return Case(said, {"answers": answers})


EXAMS = {
    "textvqa": [
        people("Maroon.", TEN),
        people("the dark  red", TEN),
        people("red", TEN),
        people("two", ["2"] * 4 + ["two"] * 4 + ["", "unanswerable"]),
        people("dont stop", ["don't stop"] * 9 + ["dont stop!"]),
        people("10,000", ["10000"] * 2 + ["10,000"] * 2 + ["10 000"] * 6),
        people("Bob's cafe", ["bob 's cafe"] * 3 + ["bobs cafe"] * 7),
        people("t-shirt", ["t shirt"] * 1 + ["tshirt"] * 9),
        people("3.5 oz.", ["3.5 oz", "3.5oz", "3 5 oz"] + ["3.5 oz."] * 1 + ["?"] * 6),
        people("a", ["a"] * 4 + ["b"] * 6),
        people("none\nof these", ["0 of these"] * 10),
        people("no idea", TEN),
    ],
    "vqav2": [
        people("Yes", ["yes"] * 10),
        people("net's", ["nets"] * 5 + ["net's"] * 2 + ["net"] * 3),
        people("at table, two", ["at table 2"] * 10),
    ],
    "docvqa": [
        people("0.28", ["0.28", ".28"]),
        people("the  ACTUAL value", ["actual value"]),
        people("Wto dogs", ["two dogs", "dogs"]),
        people("half", ["hal"]),
        people("abcd", ["abxy"]),
        people("abc", ["axy"]),
        people("ab" + " " * 8 + "cd", ["ax cd"]),
        people("n/a", ["N/A "]),
        people("$1,234.00", ["$1,234", "1234"]),
    ],
    "gqa": [
        Case("Red.", {"answer": "red"}),
        Case("the red", {"answer": "red"}),
        Case("tshirt", {"answer": "t-shirt"}),
        Case("t-shirt", {"answer": "t-shirt"}),
        Case("yes, it is", {"answer": "yes"}),
        Case("yes!", {"answer": "yes"}),
        Case("Left", {"answer": "left"}),
        Case("two", {"answer": "2"}),
    ],
    "scienceqa": [
        Case("B", {"answer": 1, "hint": "See the picture."}),
        Case("B. sample B", {"answer": 1, "hint": ""}),
        Case("b", {"answer": 1, "hint": ""}),
        Case("B.", {"answer": 1, "hint": ""}),
        Case("A.sample A", {"answer": 0, "hint": ""}),
        Case("The answer is A.", {"answer": 0, "hint": ""}),
        Case("sample A", {"answer": 0, "hint": ""}),
        Case("C", {"answer": 0, "hint": ""}),
        Case("(A)", {"answer": 0, "hint": ""}),
    ],
    "pope": [
        Case("yes", {"answer": "yes"}),
        Case("Yes.", {"answer": "yes"}),
        Case("No, there is not", {"answer": "no"}),
        Case("no", {"answer": "yes"}),
    ],
    "mme": [
        Case("Yes", {"answer": "Yes", "question_id": "code_reasoning/1.png"}),
        Case("No", {"answer": "No", "question_id": "code_reasoning/1.png"}),
        Case("Yes", {"answer": "Yes", "question_id": "code_reasoning/2.png"}),
        Case("Yes", {"answer": "No", "question_id": "code_reasoning/2.png"}),
        Case("y", {"answer": "Yes", "question_id": "code_reasoning/3.png"}),
        Case("No.", {"answer": "No", "question_id": "code_reasoning/3.png"}),
    ],
    "mmbench": [
        Case("A", {"index": 241, "A": "yes", "B": "no", "answer": "A"}),
        Case("B. yes", {"index": 1000241, "A": "no", "B": "yes", "answer": "B"}),
        Case("A", {"index": 242, "A": "yes", "B": "no", "answer": "A"}),
        Case("A", {"index": 1000242, "A": "no", "B": "yes", "answer": "B"}),
        Case("A or B", {"index": 243, "A": "yes", "B": "no", "answer": "A"}),
    ],
    "ocrbench": [
        Case("It says CENTRE", {"answer": ["centre"], "question_type": "Regular Text Recognition"}),
        Case("x ^ 2", {"answer": ["x^2"], "question_type": "Handwritten Mathematical Expression Recognition"}),
        Case("café", {"answer": ["cafe"], "question_type": "Scene Text-centric VQA"}),
    ],
}
"""By benchmark what is said to its questions."""
ALWAYS = {
    "textvqa": {"question": "what does the Sign say?"},
    "vqav2": {"question": "Where is he?", "answer_type": "other", "question_type": "where"},
    "docvqa": {"question": "What is the value?"},
    "gqa": {"question": "What is it?", "types": {"structural": "query"}},
    "scienceqa": {"question": "Which is colder?", "choices": ["sample A", "sample B"], "subject": "natural science"},
    "pope": {"question": "Is there a dog in the image?", "category": "random"},
    "mme": {"question": "Is it code? Please answer yes or no.", "category": "code_reasoning"},
    "mmbench": {
        "question": "Is it?", "hint": "nan", "C": None, "D": None, "category": "identity", "split": "dev",
        "L2-category": "attribute", "source": "",
    },
    "ocrbench": {"question": "what is written in the image?", "dataset": ""},
}  # fmt: skip
ID = {"textvqa": "question_id", "vqav2": "question_id", "docvqa": "questionId", "gqa": "id", "pope": "question_id"}


def said():
    """Returns by shade what the model says; a shade is a question of some benchmark."""
    return dict(enumerate(case.said for cases in EXAMS.values() for case in cases))


def write_exams(folder, more=()):
    """Writes the benchmarks as local parquet files; returns what reads them."""
    shade, found = 0, []
    for name, cases in EXAMS.items():
        rows, pictures = [], []
        for case in cases:
            row = ALWAYS[name] | case.columns
            if name == "vqav2":
                marked = enumerate(row["answers"], start=1)
                row["answers"] = [{"answer": text, "answer_id": at} for at, text in marked]
            if name in ID:
                row[ID[name]] = 1000 + shade
            if name == "gqa":
                pictures.append({"id": f"n{shade}", "image": held(shade)})
                row["imageId"] = f"n{shade}"
            else:
                row["image"] = held(shade)
            rows.append(row)
            shade += 1
        (folder / f"{name}.parquet").write_bytes(table(rows))
        settings = [f"file={folder / name}.parquet"]
        if pictures:
            (folder / f"{name}_images.parquet").write_bytes(table(pictures))
            settings.append(f"fields.join.file={folder / name}_images.parquet")
        found.append(load(BENCHMARKS / f"{name}_parquet.yaml", BenchmarkSpec, settings))
    return found
