"""Task files for lmms-eval: what they hold, what is left out, and what is told where they cannot be written."""

from types import SimpleNamespace
from unittest import mock

import pyarrow.parquet as parquet
import pytest
import yaml
from bridge_exams import write_exams
from published_forms import lines
from typer.testing import CliRunner

from mmmoe.bridges import lmms_tasks
from mmmoe.bridges.lmms_tasks import TASKS, write_tasks
from mmmoe.cli import app
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec


@pytest.fixture
def package(tmp_path):
    """A folder that looks like lmms-eval's."""
    for task in TASKS.values():
        path = tmp_path / "lmms_eval/tasks" / task.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("task: packaged\n")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "lmms_eval")])
    with mock.patch.object(lmms_tasks, "find_spec", return_value=found):
        yield tmp_path / "lmms_eval"


def test_every_task_names_its_packaged_one_and_a_table_with_the_pictures_files(tmp_path, package):
    names = write_tasks(EvaluationSpec(benchmarks=write_exams(tmp_path)), tmp_path / "out")
    assert sorted(names) == sorted(f"mmmoe_{name}" for name in TASKS)
    assert names == [yaml.safe_load((tmp_path / f"out/{name}.yaml").read_text())["task"] for name in names]
    task = yaml.safe_load((tmp_path / "out/mmmoe_gqa.yaml").read_text())
    assert task["include"] == str(package / "tasks/gqa/gqa.yaml")
    assert task["dataset_kwargs"] == {"data_files": {"testdev": "mmmoe_gqa.parquet"}}
    assert task["process_docs"] is None
    row = parquet.read_table(tmp_path / "out/mmmoe_scienceqa.parquet").to_pylist()[0]
    assert row.pop("image")["path"].startswith(str(tmp_path / "out/table_media"))
    assert row == {
        "hint": "See the picture.",
        "question": "Which is colder?",
        "choices": ["sample A", "sample B"],
        "answer": 1,
    }


def test_a_benchmark_without_a_task_is_left_out_or_told(tmp_path, package):
    (tmp_path / "own.jsonl").write_bytes(lines([{"id": "1", "question": "q", "answer": "a"}]))
    own = BenchmarkSpec(name="own", file=str(tmp_path / "own.jsonl"), kind="short_answer")
    [text_vqa, *_] = write_exams(tmp_path)
    spec = EvaluationSpec(benchmarks=[own, text_vqa], limit=2)
    assert write_tasks(spec, tmp_path / "out") == ["mmmoe_textvqa"]
    assert parquet.read_metadata(tmp_path / "out/mmmoe_textvqa.parquet").num_rows == 2
    with pytest.raises(ValueError, match=r"has tasks for textvqa, .* here, and the suite has none of them"):
        write_tasks(EvaluationSpec(benchmarks=[own]), tmp_path / "out")


def test_another_version_or_none_is_told(tmp_path, package):
    spec = EvaluationSpec(benchmarks=write_exams(tmp_path)[:1])
    (package / "tasks" / TASKS["textvqa"].file).unlink()
    with pytest.raises(ValueError, match="install the version that the extra `lmms` names"):
        write_tasks(spec, tmp_path / "out")
    with mock.patch.object(lmms_tasks, "find_spec", return_value=None), pytest.raises(ValueError, match="make lmms"):
        write_tasks(spec, tmp_path / "out")


def test_the_verb_tells_what_it_wrote(tmp_path, package):
    [text_vqa, *_] = write_exams(tmp_path)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"benchmarks": [text_vqa.model_dump(mode="json")]}))
    done = CliRunner().invoke(app, ["data", "lmms", str(tmp_path / "suite.yaml"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert "mmmoe_textvqa" in done.output
    assert (tmp_path / "out/mmmoe_textvqa.yaml").is_file()
