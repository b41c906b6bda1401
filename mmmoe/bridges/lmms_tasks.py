"""Task files with which lmms-eval asks the questions of a suite of ours, from local files and without a hub.

A task file takes the task that lmms-eval packages, under a new name (of two tasks of one name it takes its own), and
puts a local parquet file in place of the hub's data set. That file has the columns that the packaged task reads, and
names the pictures' files instead of holding them. So both kits are asked the same questions about the same pictures,
each in its own wording; how they differ in judging is told in configs/benchmarks/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mmmoe.evaluation.metrics.ocrbench import FORMULA
from mmmoe.evaluation.metrics.options import right_letter
from mmmoe.evaluation.prompts import letter
from mmmoe.evaluation.questions import Question, load_questions
from mmmoe.evaluation.shares import write_text
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.log import logger

PREFIX = "mmmoe_"
"""Of a task's name, so that it is not one of lmms-eval's own."""
BETWEEN = "\x1e"
"""Parts hint and question where both are asked for in one wording."""
BARE = "{hint}" + BETWEEN + "{question}"

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question in its file's words, without the wording of a prompt."""

    question: Question
    text: str
    hint: str


@dataclass(frozen=True)
class PackagedTask:
    """A task of lmms-eval that scores a benchmark of ours."""

    file: str
    """Below its folder of tasks."""
    split: str
    columns: Callable[[Asked], Row]
    """What it reads of a document, besides the image."""


def write_tasks(spec: EvaluationSpec, out: Path) -> list[str]:
    """Writes a task file and a parquet file for each benchmark that lmms-eval has a task for; returns the tasks' names.

    Raises:
        ValueError: lmms-eval is not installed, has no such task, or knows none of the benchmarks.
    """
    folder = _packaged()
    known = [benchmark for benchmark in spec.benchmarks if benchmark.name in TASKS]
    if not known:
        raise ValueError(f"lmms-eval has tasks for {', '.join(TASKS)} here, and the suite has none of them")
    names = []
    for benchmark in spec.benchmarks:
        if benchmark.name in TASKS:
            names.append(_write(benchmark, TASKS[benchmark.name], folder, out, spec.limit))
        else:
            logger().info("benchmark %s: no task of lmms-eval is known for it, left out", benchmark.name)
    return names


def _packaged() -> Path:
    """Returns lmms-eval's folder of tasks, without importing it, which takes a quarter of a minute."""
    found = find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        raise ValueError("lmms-eval is not installed, whose task files are taken; `make lmms` makes an environment")
    return Path(found.submodule_search_locations[0]) / "tasks"


def _write(benchmark: BenchmarkSpec, task: PackagedTask, folder: Path, out: Path, limit: int | None) -> str:
    included = folder / task.file
    if not included.is_file():
        raise ValueError(f"lmms-eval has no {included}; install the version that the extra `lmms` names")
    bare = benchmark.model_copy(update={"prompt": BARE})
    questions = load_questions(bare, limit, out).questions
    asked = [Asked(question, *reversed(question.text.split(BETWEEN, 1))) for question in questions]
    name = PREFIX + benchmark.name
    write_table(out / f"{name}.parquet", [task.columns(one) for one in asked], [one.image for one in questions])
    content = {
        "include": str(included),
        "task": name,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {task.split: f"{name}.parquet"}},
        # GQA's fetches the images from the hub; they are in the table already.
        "process_docs": None,
    }
    head = (
        f"# Benchmark {benchmark.name} ({len(questions)} questions) as lmms-eval asks and scores it, from local files\n"
        f"# python -m lmms_eval --model mmmoe --model_args path=RUN --tasks {name} --include_path {out}\n"
    )
    write_text(out / f"{name}.yaml", head + yaml.safe_dump(content, sort_keys=False))
    return name


def write_table(path: Path, rows: Sequence[Row], images: Sequence[Path | None]) -> None:
    """Writes rows with an `image` column of file names, marked as pictures for the library that reads it."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    form = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    cells = [None if image is None else {"bytes": None, "path": str(image.resolve())} for image in images]
    table = arrow.Table.from_pylist(list(rows)).append_column("image", arrow.array(cells, form))
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    partial = path.with_name(f"{path.name}.partial")
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), partial)
    partial.replace(path)


def _with_answers(asked: Asked) -> Row:
    # TextVQA's task reads the one spelling of the column, DocVQA's the other.
    own = asked.question.id
    return {"question_id": own, "questionId": own, "question": asked.text, "answers": list(asked.question.answers)}


def _vqa(asked: Asked) -> Row:
    # Without numbers of their own, equal answers would all be left out where one is.
    answers = [{"answer": text, "answer_id": at} for at, text in enumerate(asked.question.answers, start=1)]
    return {"question_id": asked.question.id, "question": asked.text, "answers": answers}


def _gqa(asked: Asked) -> Row:
    return {"id": asked.question.id, "question": asked.text, "answer": asked.question.answer}


def _science_qa(asked: Asked) -> Row:
    question = asked.question
    return {
        "hint": asked.hint,
        "question": asked.text,
        "choices": list(question.choices),
        "answer": question.choices.index(question.answer),
    }


def _yes_or_no(asked: Asked) -> Row:
    question = asked.question
    return {
        "question_id": question.group or question.id,
        "question": asked.text,
        "answer": question.answer,
        "category": question.category,
    }


def _mmbench(asked: Asked) -> Row:
    question = asked.question
    # "nan" is what the published tables hold where there is nothing, and what lmms-eval looks for.
    texts = [*question.choices, *["nan"] * 4][:4]
    return {
        "index": int(question.id),
        "question": asked.text,
        "hint": asked.hint or "nan",
        **{letter(place): text for place, text in enumerate(texts)},
        "answer": right_letter(question.item),
        "category": question.category,
        "L2-category": question.category,
        "source": "",
        "split": "dev",
    }


def _ocrbench(asked: Asked) -> Row:
    question = asked.question
    return {
        "question": asked.text,
        "answer": list(question.answers),
        "question_type": question.category,
        # Of which its task wants to know only whether it is the one that all formulas come from.
        "dataset": "HME100k" if question.category == FORMULA else "",
    }


TASKS: dict[str, PackagedTask] = {
    "textvqa": PackagedTask("textvqa/textvqa_val.yaml", "validation", _with_answers),
    "vqav2": PackagedTask("vqav2/vqav2_val.yaml", "validation", _vqa),
    "gqa": PackagedTask("gqa/gqa.yaml", "testdev", _gqa),
    "scienceqa": PackagedTask("scienceqa/scienceqa_img.yaml", "test", _science_qa),
    "pope": PackagedTask("pope/pope.yaml", "test", _yes_or_no),
    "mme": PackagedTask("mme/mme.yaml", "test", _yes_or_no),
    # The other task of MMBench asks a model on the internet, and guesses where it gets no answer.
    "mmbench": PackagedTask("mmbench/mmbench_en_dev_static.yaml", "dev", _mmbench),
    "docvqa": PackagedTask("docvqa/docvqa_val.yaml", "validation", _with_answers),
    "ocrbench": PackagedTask("ocrbench/ocrbench.yaml", "test", _ocrbench),
}
"""By the name of a benchmark what lmms-eval has for it."""
