"""A killed evaluation goes on where it was; answers serve another metric; what they depend on tells them apart."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from evaluation_fakes import die_in_process, make_subject, mortal_subject, sit_in_process

from mmmoe import env
from mmmoe.evaluation.responses import RESPONSES, Responses, folder_of, key_of
from mmmoe.evaluation.runner import evaluate, evaluate_all
from mmmoe.evaluation.scores import read_scores
from mmmoe.evaluation.spec import BenchmarkSpec, EvaluationSpec

SHADES = [3, 9, 3, 12, 9, 3, 7]


@pytest.fixture
def spec(benchmark_file):
    said = [{"id": f"s{n}", "shade": s, "question": f"{'x' * n} shade", "answer": str(s)} for n, s in enumerate(SHADES)]
    chosen = [
        {"id": f"c{n}", "shade": s, "question": f"{'y' * n} q", "answer": "a", "choices": ["a", "bb", "c"]}
        for n, s in enumerate(SHADES)
    ]
    return EvaluationSpec(
        benchmarks=[
            BenchmarkSpec(name="said", file=str(benchmark_file(said, "said.jsonl")), kind="short_answer"),
            BenchmarkSpec(name="chosen", file=str(benchmark_file(chosen, "chosen.jsonl")), kind="multiple_choice"),
        ],
        bootstrap=100,
        batch=2,
    )


class KilledError(Exception):
    """Stands for a kill that leaves this process alive."""


def die():
    raise KilledError


def files(folder):
    return {name: (folder / "trained" / f"{name}.jsonl").read_text() for name in ("said", "chosen")}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("lives", [0, 1, 3, 4, 9])
def test_after_a_kill_only_the_rest_is_asked(spec, tmp_path, lives, keeps):
    spec = spec.model_copy(update={"cache": keeps})
    whole, log = tmp_path / "whole.log", tmp_path / "asked.log"
    wanted = evaluate(mortal_subject(whole), spec, tmp_path / "whole", "trained", cache=tmp_path / "other")
    out, cache = tmp_path / "killed", tmp_path / "cache"
    with pytest.raises(KilledError):
        evaluate(mortal_subject(log, lives, die), spec, out, "trained", cache=cache)
    rows = evaluate(mortal_subject(log), spec, out, "trained", cache=cache)
    assert sorted(log.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert files(out) == files(tmp_path / "whole")
    assert [row.score for row in rows] == [row.score for row in wanted]
    assert (cache / RESPONSES).exists() == keeps
    assert not (out / RESPONSES).exists()


@pytest.mark.parametrize("world", [1, 2])
def test_after_a_real_kill_any_number_of_processes_goes_on(spec, tmp_path, world):
    alone, out, cache, log = (tmp_path / name for name in ("alone", "out", "cache", "log"))
    out.mkdir()
    evaluate(make_subject(), spec, alone, "trained")
    process = mp.get_context("spawn").Process(target=die_in_process, args=(spec, out, cache, log, 6))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    asked = len(log.read_text().splitlines())
    mp.spawn(sit_in_process, (world, env.free_port(), spec, out, "weights", cache), nprocs=world)
    assert files(out) == files(alone)
    kept = [path.read_text().splitlines() for path in cache.glob(f"{RESPONSES}/*/*.jsonl")]
    keys = [json.loads(line)[0] for lines in kept for line in lines]
    assert len(set(keys)) == len(keys) == 7 + 21
    assert sum(row.reused for row in read_scores(out / "scores.json")) == 7 + round((asked - 7) / 3)


def test_a_line_cut_short_is_asked_again_and_takes_no_other_with_it(tmp_path):
    responses = Responses(tmp_path)
    responses.keep({"a": "one\u2028two", "b": float("-inf")})
    responses.close()
    [path] = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + '["c", "\u00e4'.encode()[:-1])
    again = Responses(tmp_path)
    assert [again.get(key) for key in "abc"] == ["one\u2028two", float("-inf"), None]
    again.keep({"c": "whole"})
    again.close()
    assert Responses(tmp_path).get("c") == "whole"


def test_two_at_once_write_two_files(tmp_path):
    first, second = Responses(tmp_path), Responses(tmp_path)
    first.keep({"a": "1"})
    second.keep({"b": "2"})
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    first.close()
    second.close()
    third = Responses(tmp_path)
    third.keep({"c": "3"})
    third.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert [Responses(tmp_path).get(key) for key in "abc"] == ["1", "2", "3"]


def test_another_metric_and_another_suite_ask_nothing(spec, tmp_path):
    log = tmp_path / "log"
    evaluate(mortal_subject(log), spec, tmp_path / "one", "trained", cache=tmp_path)
    asked = log.read_text()
    said = spec.benchmarks[0].model_copy(update={"name": "again", "metric": "words"})
    [row] = evaluate(
        mortal_subject(log), spec.model_copy(update={"benchmarks": [said]}), tmp_path / "two", "trained", cache=tmp_path
    )
    assert log.read_text() == asked
    assert (row.metric, row.reused, row.n) == ("words", 7, 7)


@pytest.mark.parametrize("change", ["key", "blind", "tokens", "beams", "picture", "wording"])
def test_what_an_answer_depends_on_is_asked_anew(spec, tmp_path, change):
    spec = spec.model_copy(update={"benchmarks": spec.benchmarks[:1]})
    evaluate(mortal_subject(tmp_path / "one"), spec, tmp_path / "out", "trained", cache=tmp_path)
    benchmark, key = spec.benchmarks[0], "other weights" if change == "key" else "weights"
    if change == "tokens":
        benchmark = benchmark.model_copy(update={"max_new_tokens": 3})
    if change == "wording":
        benchmark = benchmark.model_copy(update={"prompt": "{question}!"})
    subject = mortal_subject(tmp_path / "two", key=key)
    if change == "picture":
        for shade in set(SHADES):
            (tmp_path / "benchmark" / f"{shade}.png").write_bytes(bytes([shade + 1]))
    spec = spec.model_copy(update={"benchmarks": [benchmark], "beams": 2 if change == "beams" else 1})
    if change == "beams":
        subject._model.generate = lambda *args, beams, repetition_penalty, **more: type(subject._model).generate(
            subject._model, *args, **more
        )
    [row] = evaluate(subject, spec, tmp_path / "out", "trained", blind=change == "blind", cache=tmp_path)
    assert row.reused == 0
    assert len((tmp_path / "two").read_text().splitlines()) == 7


def test_a_model_whose_weights_change_remembers_nothing(spec, tmp_path):
    for _ in range(2):
        rows = evaluate(make_subject(), spec, tmp_path / "out", "trained", cache=tmp_path)
        assert [row.reused for row in rows] == [0, 0]
    assert not (tmp_path / RESPONSES).exists()


def test_variants_of_one_evaluation_are_told_apart_and_resumed_together(spec, tmp_path):
    spec = spec.model_copy(update={"cache": False})
    log = tmp_path / "log"
    whole = evaluate_all(mortal_subject(tmp_path / "whole"), spec, tmp_path / "a", lambda: make_subject(key="fresh"))
    with pytest.raises(KilledError):
        evaluate_all(mortal_subject(log, 20, die), spec, tmp_path / "b")
    assert (tmp_path / "b" / RESPONSES).is_dir()
    rows = evaluate_all(mortal_subject(log), spec, tmp_path / "b", lambda: make_subject(key="fresh"))
    assert len(log.read_text().splitlines()) == len((tmp_path / "whole").read_text().splitlines())
    assert [(row.variant, row.score) for row in rows] == [(row.variant, row.score) for row in whole]
    assert not (tmp_path / "b" / RESPONSES).exists()


def test_a_kill_in_the_last_variant_costs_no_answer_of_the_first(spec, tmp_path):
    spec = spec.model_copy(update={"cache": False})
    first, last = tmp_path / "first.log", tmp_path / "last.log"
    with pytest.raises(KilledError):
        evaluate_all(mortal_subject(first), spec, tmp_path / "out", lambda: mortal_subject(last, 2, die, "fresh"))
    asked = [log.read_text() for log in (first, last)]
    rows = evaluate_all(mortal_subject(first), spec, tmp_path / "out", lambda: mortal_subject(last, key="fresh"))
    assert first.read_text() == asked[0], "nothing was asked again"
    assert last.read_text().startswith(asked[1])
    assert [row.reused for row in rows] == [7, 7, 7, 7, 4, 0]
    assert not (tmp_path / "out" / RESPONSES).exists()


def test_keys_and_folders_are_names():
    assert key_of("a", [1, 2], {"x": 1.5}) == key_of("a", (1, 2), {"x": 1.5})
    assert key_of("a", 1) != key_of("a", "1")
    assert len(folder_of("digest", Path("cache")).name) == 16
