"""What papers report is found beside a run's scores by the command that each file's head names."""

from __future__ import annotations

import re

import pytest

from mmmoe.config.load import load
from mmmoe.evaluation.paper_scores import FOLDER, paper_scores
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.paths import project_root

FILES = sorted((project_root() / FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_suite_of_a_files_head_has_benchmarks_that_it_tells_of(path):
    suite = re.search(r"suite=(\S+)", path.read_text())[1]
    asked = {benchmark.name for benchmark in load(project_root() / suite, EvaluationSpec).benchmarks}
    told = paper_scores(path.stem)
    assert asked & set(told)
    assert all(score.value and score.source for scores in told.values() for score in scores)


def test_a_family_that_no_file_tells_of_has_none():
    assert paper_scores("nobody") == {}
