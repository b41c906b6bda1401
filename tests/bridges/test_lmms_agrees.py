"""lmms-eval itself and this kit judge the same answers to the same local questions, and differ where it is told only.

The differences are listed in configs/benchmarks/README.md.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from bridge_exams import EXAMS, parrot, said, write_exams

from mmmoe.evaluation.answers import read_answers
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.spec import EvaluationSpec

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make lmms` installs it and runs these tests")
pytestmark = pytest.mark.lmms


@dataclass(frozen=True)
class Told:
    """What lmms-eval says of the exams."""

    results: dict
    samples: dict
    benchmarks: dict
    folder: Path

    def scores(self, name, metric):
        samples = sorted(self.samples[f"mmmoe_{name}"], key=lambda sample: sample["doc_id"])
        assert [sample["filtered_resps"][0] for sample in samples] == [case.said for case in EXAMS[name]]
        return [sample[metric] for sample in samples]

    def total(self, name, metric):
        return self.results[f"mmmoe_{name}"][f"{metric},none"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    here = Path.cwd()
    with mock.patch.dict(os.environ, offline):
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        from mmmoe.bridges.lmms import MmmoeLmms
        from mmmoe.bridges.lmms_tasks import write_tasks

        benchmarks = write_exams(folder)
        names = write_tasks(EvaluationSpec(benchmarks=benchmarks), folder / "tasks")
        assert names == [f"mmmoe_{name}" for name in EXAMS]
        # Some of its tasks write files to the working folder.
        os.chdir(folder)
        try:
            found = simple_evaluate(
                model=MmmoeLmms(parrot(said()), folder / "cache"),
                tasks=names,
                task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
                bootstrap_iters=0,
            )
        finally:
            os.chdir(here)
    return Told(found["results"], found["samples"], {one.name: one for one in benchmarks}, folder)


def judged(told, name, metric=None):
    """Returns score by score and in all what this kit makes of the same answers, asked in its own wording."""
    benchmark = told.benchmarks[name]
    benchmark = benchmark.model_copy(update={"metric": metric or benchmark.metric})
    out = told.folder / f"own_{name}_{benchmark.metric}"
    spec = EvaluationSpec(benchmarks=[benchmark], bootstrap=100)
    [row] = evaluate(parrot(said()), spec, out, "trained", cache=told.folder / "own")
    answers = read_answers(out / "trained" / f"{name}.jsonl")
    assert [answer.prediction for answer in answers] == [case.said for case in EXAMS[name]]
    return [answer.score for answer in answers], row.score


@pytest.mark.parametrize(
    ("name", "metric", "theirs"),
    [
        ("textvqa", "vqa", "exact_match"),
        ("vqav2", "vqa_v2", "exact_match"),
        ("docvqa", "anls_docvqa", "anls"),
        ("gqa", "gqa_loose", "exact_match"),
    ],
)
def test_the_same_definition_gives_the_same_scores(told, name, metric, theirs):
    scores, headline = judged(told, name, metric)
    assert told.scores(name, theirs) == pytest.approx(scores, abs=1e-12)
    assert told.total(name, theirs) == pytest.approx(headline, abs=1e-12)
    assert 0 < headline < 1


@pytest.mark.parametrize(
    ("name", "theirs", "differences"),
    [
        ("textvqa", "exact_match", {}),
        ("vqav2", "exact_match", {}),
        # Blanks are squeezed, but counted in the length that the edits are divided by.
        ("docvqa", "anls", {"ab" + " " * 8 + "cd": (0.0, 1 - 1 / 12), "the  ACTUAL value": (12 / 17, 13 / 17)}),
        # Punctuation inside is deleted on both sides.
        ("gqa", "exact_match", {"tshirt": (0.0, 1.0), "yes!": (0.0, 1.0)}),
        (
            "scienceqa",
            "exact_match",
            {"b": (0.0, 1.0), "B.": (0.0, 1.0), "A.sample A": (0.0, 1.0), "The answer is A.": (1.0, 0.0)},
        ),
    ],
)
def test_the_official_definition_differs_where_it_is_told(told, name, theirs, differences):
    ours, headline = judged(told, name)
    others = told.scores(name, theirs)
    words = [case.said for case in EXAMS[name]]
    pairs = {said: pair for said, *pair in zip(words, ours, others, strict=True)}
    assert {said: pair for said, pair in pairs.items() if pair[0] != pytest.approx(pair[1])} == {
        said: pytest.approx(list(pair)) for said, pair in differences.items()
    }
    gap = sum(pair[1] - pair[0] for pair in differences.values()) / len(words)
    assert told.total(name, theirs) - headline == pytest.approx(gap, abs=1e-12)


def test_the_other_tasks_that_are_written_run_and_score_as_is_told(told):
    _, ours = judged(told, "mme")
    # 100 for the share of questions and as much for that of images with both right; "y" is yes to lmms-eval.
    assert ours == pytest.approx(100 * (4 / 6 + 1 / 3))
    assert told.total("mme", "mme_cognition_score") == pytest.approx(100 * (5 / 6 + 2 / 3))
    _, ours = judged(told, "mmbench")
    # Of "A or B" it takes the first.
    assert (100 * ours, told.total("mmbench", "gpt_eval_score")) == pytest.approx((100 / 3, 200 / 3))
    scores, _ = judged(told, "pope")
    theirs = [sample["score"] for sample in told.scores("pope", "pope_accuracy")]
    # "Yes." and "No, there is not" are neither to lmms-eval.
    assert (scores, theirs) == ([1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0])
    scores, ours = judged(told, "ocrbench")
    theirs = [sample["score"] for sample in told.scores("ocrbench", "ocrbench_accuracy")]
    assert scores == theirs == [1.0, 1.0, 0.0]
    # Divided by the 1,000 questions of the whole benchmark.
    assert told.total("ocrbench", "ocrbench_accuracy") == pytest.approx(ours * 3 / 1000)
