"""The house rules that no linter knows: declarations load, root folders are no packages, ops are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmmoe.config.load import load
from mmmoe.data.spec import MixtureSpec
from mmmoe.evaluation.paper_scores import PaperScoresSpec
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec
from mmmoe.models.spec import ModelSpec
from mmmoe.stages.experiment import ExperimentSpec
from mmmoe.stages.spec import RunSpec

ROOT = Path(__file__).resolve().parent.parent
DECLARED = ["models", "data", "stages", "kernels", "configs"]
SPECS = {
    "configs/*.yaml": RunSpec,
    "configs/experiments/*.yaml": ExperimentSpec,
    "configs/evaluation/*.yaml": EvaluationSpec,
    "configs/benchmarks/*.yaml": BenchmarkSpec,
    "configs/benchmarks/published/*.yaml": PaperScoresSpec,
    "data/mixtures/*.yaml": MixtureSpec,
    "models/*/*.yaml": ModelSpec,
}
FILES = [(path, spec) for pattern, spec in SPECS.items() for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize(("path", "spec"), FILES, ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else "")
def test_every_declaration_loads(path, spec):
    load(path, spec)


def test_every_stage_file_is_used_by_a_run():
    runs = "".join(p.read_text() for pattern in ("configs/**", "stages/*") for p in ROOT.glob(f"{pattern}/*.yaml"))
    unused = [p for p in ROOT.glob("stages/*/*.yaml") if str(p.relative_to(ROOT)) not in runs]
    assert unused == []


@pytest.mark.parametrize(
    "path", sorted(p for d in DECLARED for p in (ROOT / d).rglob("*.yaml") if "local" not in p.parts)
)
def test_every_yaml_says_what_it_is_and_how_to_use_it(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(re.match(r"^# (mmmoe|make|python) ", line) for line in lines[:3]), (
        "second line: one command that runs it"
    )


@pytest.mark.parametrize("folder", DECLARED)
def test_no_root_folder_is_a_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_importing_transformers_beside_the_root_folders_works():
    done = subprocess.run([sys.executable, "-c", "import transformers"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _ops():
    return sorted(p.name for p in (ROOT / "mmmoe/kernels").iterdir() if p.is_dir() and (p / "__init__.py").exists())


def test_there_is_an_op():
    assert "grouped_lora" in _ops()


BENCH_OF = {"lora_ffn": "lora"}
"""Ops whose benchmark bears another name, since it measures more than the op."""


@pytest.mark.parametrize("op", _ops())
def test_every_op_has_reference_op_test_and_bench(op):
    for file in (
        f"mmmoe/kernels/{op}/reference.py",
        f"mmmoe/kernels/{op}/op.py",
        f"tests/kernels/test_{op}.py",
        f"kernels/bench/bench_{BENCH_OF.get(op, op)}.py",
    ):
        assert (ROOT / file).is_file(), file
    assert op in (ROOT / "kernels/README.md").read_text()
    bench = {path.name: path.read_text() for path in (ROOT / "kernels/bench").glob("*.py")}
    assert any(f"from mmmoe.kernels.{op}." in text for text in bench.values()), f"no benchmark runs {op}"


def test_no_file_is_longer_than_a_sitting():
    sources = [
        p
        for folder in ("mmmoe", "tests", "data", "kernels")
        for p in (ROOT / folder).rglob("*.py")
        if "local" not in p.parts
    ]
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_every_module_opens_with_its_purpose():
    empty = [str(p) for p in (ROOT / "mmmoe").rglob("*.py") if not p.read_text().startswith('"""')]
    assert empty == []


def test_readme_names_every_verb():
    from mmmoe.cli import app

    readme = (ROOT / "README.md").read_text()
    verbs = [c.name or c.callback.__name__ for c in app.registered_commands if not c.hidden]
    assert [v for v in verbs if f"mmmoe {v}" not in readme] == []
