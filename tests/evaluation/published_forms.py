"""Small files in the forms that benchmarks are published in, and the questions that are to come of them: pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import wave
from dataclasses import dataclass

import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def png(shade, size=(4, 2)):
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def wav(level):
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes([level, 0]) * 800)
    return stream.getvalue()


def document(content):
    return json.dumps(content).encode()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows, **more):
    stream = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, **more), stream)
    return stream.getvalue()


def separated(names, rows, mark=","):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=mark, lineterminator="\n")
    writer.writerows([names, *rows])
    return stream.getvalue().encode()


def held(shade):
    """Returns a cell as the hub's parquet files hold a picture."""
    return {"bytes": png(shade), "path": None}


@dataclass
class Asked:
    """What is to come of a row."""

    id: str
    text: str
    answers: tuple
    sees: bytes | None = None
    choices: tuple = ()
    category: str = ""
    group: str = ""
    kind: str = "image"


@dataclass
class Form:
    """A benchmark's files by their path under data/local/benchmarks, and its questions."""

    files: dict
    asked: list


TEN = ("red", "red", "", "red", "blue", "red", "red", "red", "red", "red")
FORMS = {}

TEXTVQA = {"question_id": 34602, "question": "what does the Sign say?", "answers": list(TEN), "image_id": "003a8ae2"}
TEXTVQA_ASKED = [Asked("34602", "what does the Sign say?" + SHORT, TEN, png(1))]
FORMS["textvqa"] = Form(
    {
        "textvqa/TextVQA_0.5.1_val.json": document({"dataset_name": "textvqa", "data": [TEXTVQA]}),
        "textvqa/train_images/003a8ae2.jpg": png(1),
    },
    TEXTVQA_ASKED,
)
FORMS["textvqa_parquet"] = Form(
    {"textvqa/data/validation-00000-of-00003.parquet": table([TEXTVQA | {"image": held(1), "ocr_tokens": ["STOP"]}])},
    TEXTVQA_ASKED,
)

NETS = ("net", "net", "a net")
RATED = [{"answer": text, "answer_confidence": "yes", "answer_id": place} for place, text in enumerate(NETS)]
MARKED = {"question_id": 262148000, "answers": RATED, "image_id": 262148, "multiple_choice_answer": "net"}
WHERE = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
FORMS["vqav2"] = Form(
    {
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": document({"info": {}, "questions": [WHERE]}),
        "vqav2/v2_mscoco_val2014_annotations.json": document(
            {"annotations": [MARKED | {"question_type": "none of the above", "answer_type": "other"}]}
        ),
        "vqav2/val2014/COCO_val2014_000000262148.jpg": png(2),
    },
    [Asked("262148000", "Where is he looking?" + SHORT, NETS, png(2), category="other")],
)
FORMS["vqav2_parquet"] = Form(
    {
        "vqav2/data/validation-00000-of-00068.parquet": table(
            [WHERE | MARKED | {"question_type": "what", "answer_type": "other", "image": held(2)}]
        )
    },
    FORMS["vqav2"].asked,
)
FORMS["okvqa"] = Form(
    {
        "okvqa/OpenEnded_mscoco_val2014_questions.json": document({"questions": [WHERE]}),
        "okvqa/mscoco_val2014_annotations.json": document(
            {"annotations": [MARKED | {"question_type": "four", "answer_type": "other", "confidence": 3}]}
        ),
        "okvqa/val2014/COCO_val2014_000000262148.jpg": png(2),
    },
    [Asked("262148000", "Where is he looking?" + SHORT, NETS, png(2), category="four")],
)
FORMS["okvqa_parquet"] = Form(
    {
        "okvqa/data/val2014-00000-of-00002.parquet": table(
            [
                {"question_id": "262148000", "image": held(2), "question": "Where is he looking?"}
                | {"answers": list(NETS), "question_type": "four", "answer_type": "other"}
            ]
        )
    },
    FORMS["okvqa"].asked,
)

TYPED = {"types": {"structural": "verify", "semantic": "global", "detailed": "place"}, "isBalanced": True}
OVERCAST = {"question": "Is it overcast?", "answer": "no", "imageId": "n161313"} | TYPED
FORMS["gqa"] = Form(
    {
        "gqa/testdev_balanced_questions.json": document({"201307251": OVERCAST}),
        "gqa/images/n161313.jpg": png(3),
    },
    [Asked("201307251", "Is it overcast?" + SHORT, ("no",), png(3), category="verify")],
)
FORMS["gqa_parquet"] = Form(
    {
        "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet": table([OVERCAST | {"id": "201307251"}]),
        "gqa/testdev_balanced_images/testdev-00000-of-00001.parquet": table([{"id": "n161313", "image": held(3)}]),
    },
    FORMS["gqa"].asked,
)

SNOW = "COCO_val2014_000000310196.jpg"
FORMS["pope"] = Form(
    {
        f"pope/coco_pope_{split}.json": lines(
            [{"question_id": 1, "image": SNOW, "text": f"Is there a {split} dog in the image?", "label": "no"}]
        )
        for split in ("random", "popular", "adversarial")
    }
    | {f"pope/val2014/{SNOW}": png(4)},
    [
        Asked(f"{split}-1", f"Is there a {split} dog in the image?{SHORT}", ("no",), png(4), category=split)
        for split in ("random", "popular", "adversarial")
    ],
)
FORMS["pope_parquet"] = Form(
    {
        "pope/data/test-00000-of-00003.parquet": table(
            [
                {"id": "0", "question_id": "1", "question": "Is there a snowboard in the image?", "answer": "yes"}
                | {"image_source": SNOW[:-4], "image": held(4), "category": "adversarial"}
            ]
        )
    },
    [Asked("adversarial-1", "Is there a snowboard in the image?" + SHORT, ("yes",), png(4), category="adversarial")],
)

PLEASE = " Please answer yes or no."
FORMS["mme"] = Form(
    {
        "mme/eval_tool/Your_Results/code_reasoning.txt": (
            f'0020.png\tIs a "c" code shown?{PLEASE}\tYes\n0020.png\tIs a python code shown?{PLEASE}\tNo\n'
        ).encode(),
        "mme/eval_tool/Your_Results/artwork.txt": f"10002.jpg\tIs it art?{PLEASE}\tYes\n".encode(),
        "mme/MME_Benchmark_release_version/code_reasoning/0020.png": png(5),
        "mme/MME_Benchmark_release_version/artwork/images/10002.jpg": png(6),
    },
    [
        Asked(f"{of}/{name}/{row}", text + SHORT, (answer,), png(shade), category=of, group=f"{of}/{name}")
        for row, (of, name, text, answer, shade) in enumerate(
            [
                ("artwork", "10002.jpg", "Is it art?", "Yes", 6),
                ("code_reasoning", "0020.png", 'Is a "c" code shown?', "Yes", 5),
                ("code_reasoning", "0020.png", "Is a python code shown?", "No", 5),
            ]
        )
    ],
)
FORMS["mme_parquet"] = Form(
    {
        "mme/data/test-00000-of-00004.parquet": table(
            [
                {"question_id": "code_reasoning/0020.png", "image": held(5), "category": "code_reasoning"}
                | {"question": f"Is {of} code shown?{PLEASE}", "answer": answer}
                for of, answer in (("c", "Yes"), ("python", "No"))
            ]
        )
    },
    [
        Asked(f"{name}/{row}", f"Is {of} code shown?{SHORT}", (answer,), png(5), (), "code_reasoning", name)
        for name in ("code_reasoning/0020.png",)
        for row, (of, answer) in enumerate([("c", "Yes"), ("python", "No")])
    ],
)

HINTED = "Read the\ntext.\nWhich?\nA. yes\nB. no" + LETTER
TURNED = "Which?\nA. no\nB. yes" + LETTER
OTHERS = {"category": "identity_reasoning", "source": "scienceqa", "l2-category": "attribute_reasoning", "split": "dev"}
BENCH = ["index", "question", "hint", "A", "B", "C", "D", "answer", "image", *OTHERS]
FACE = base64.b64encode(png(7)).decode()
FORMS["mmbench"] = Form(
    {
        "mmbench/mmbench_dev_20230712.tsv": separated(
            BENCH,
            [
                [241, "Which?", "Read the\ntext.", "yes", "no", "", "", "B", FACE, *OTHERS.values()],
                [1000241, "Which?", "nan", "no", "yes", "", "", "A", "241", *OTHERS.values()],
                [9, "Not ours?", "", "a", "b", "", "", "A", "", *list(OTHERS.values())[:3], "test"],
            ],
            "\t",
        )
    },
    [
        Asked("241", HINTED, ("no",), png(7), ("yes", "no"), "attribute_reasoning", "241"),
        Asked("1000241", TURNED, ("no",), png(7), ("no", "yes"), "attribute_reasoning", "241"),
    ],
)
FORMS["mmbench_parquet"] = Form(
    {
        "mmbench/en/dev-00000-of-00001.parquet": table(
            [
                {"index": 1000241, "question": "Which?", "hint": "nan", "answer": "A", "A": "no", "B": "yes"}
                | {"C": None, "D": None, "category": "identity_reasoning", "image": held(7), "source": "scienceqa"}
                | {"L2-category": "attribute_reasoning", "comment": None, "split": "dev"}
            ]
        )
    },
    FORMS["mmbench"].asked[1:],
)

LAB = {"question": "Which is colder?", "choices": ["sample A", "sample B"], "answer": 1, "hint": "See the picture."}
SCIENCE = LAB | {"task": "closed choice", "grade": "grade7", "subject": "natural science"}
LAB_TEXT = "Which is colder?\nA. sample A\nB. sample B" + LETTER
FORMS["scienceqa"] = Form(
    {
        "scienceqa/problems.json": document(
            {
                "4": SCIENCE | {"image": "image.png", "split": "test"},
                "5": SCIENCE | {"image": None, "split": "test"},
                "6": SCIENCE | {"image": "image.png", "split": "train"},
                "7": SCIENCE | {"image": "image.png", "split": "test", "hint": ""},
            }
        ),
        "scienceqa/images/test/4/image.png": png(8),
        "scienceqa/images/test/7/image.png": png(9),
    },
    [
        Asked(pid, text, ("sample B",), png(shade), ("sample A", "sample B"), "natural science")
        for pid, text, shade in (("4", f"Context: See the picture.\n{LAB_TEXT}", 8), ("7", LAB_TEXT, 9))
    ],
)
FORMS["scienceqa_parquet"] = Form(
    {"scienceqa/data/test-00000-of-00001.parquet": table([SCIENCE | {"image": held(8), "solution": "Look."}])},
    [
        Asked(
            "0",
            f"Context: See the picture.\n{LAB_TEXT}",
            ("sample B",),
            png(8),
            ("sample A", "sample B"),
            "natural science",
        )
    ],
)
