"""LLaVA-1.5's templates: text, ids and labels equal to those of the authors' code."""

import json
from pathlib import Path

import pytest

from mmmoe.data.record import Turn
from mmmoe.data.sentencepiece import SentencePieceTokenizer
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Template


@pytest.fixture(scope="module")
def folder(request):
    given = request.config.getoption("--golden", default=None) or Path(__file__).parent
    place = Path(given) / "llava15"
    if not (place / "template_v1.jsonl").is_file():
        pytest.skip(f"no template cases in {place}")
    return place


@pytest.fixture(scope="module")
def cases(folder):
    lines = (folder / "template_v1.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def build(folder, case, *, as_released):
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", legacy=case["legacy"], pad_token="<unk>")
    kind = "plain" if case["prompt"] is None else "vicuna_v1"
    return Template(TemplateSpec(kind=kind, max_length=512, as_released=as_released), tokenizer)


def turns_of(case):
    return [Turn(turn["from"], turn["value"]) for turn in case["conversations"]]


def test_released_rule_equals_the_authors_code(folder, cases):
    assert len(cases) >= 14
    for case in cases:
        template = build(folder, case, as_released=True)
        encoded = template.encode(turns_of(case))
        name = (case["case"], case["legacy"])
        assert encoded.input_ids == case["input_ids"], name
        assert encoded.labels == case["labels"], name
        if case["prompt"] is not None:
            assert template.render(turns_of(case)).text == case["prompt"], name


def test_our_rule_equals_theirs_wherever_theirs_holds(folder, cases):
    compared = 0
    for case in cases:
        several = any(turn["value"].count("<image>") > 1 for turn in case["conversations"])
        if case["mismatch_warning"] or several:
            continue
        encoded = build(folder, case, as_released=False).encode(turns_of(case))
        assert encoded.input_ids == case["input_ids"], case["case"]
        assert encoded.labels == case["labels"], case["case"]
        compared += 1
    assert compared >= 10


def test_our_rule_keeps_the_answers_their_bookkeeping_drops(folder, cases):
    dropped = [case for case in cases if case["mismatch_warning"]]
    assert dropped
    for case in dropped:
        template = build(folder, case, as_released=False)
        encoded = template.encode(turns_of(case))
        assert encoded.input_ids == case["input_ids"]
        ends = [turn for turn in case["conversations"] if turn["from"] == "gpt" and turn["value"]]
        assert encoded.labels.count(template.tokenizer.eos_token_id) == len(ends)
        targets = [i for i in encoded.labels if i >= 0 and i != template.tokenizer.eos_token_id]
        decoded = template.tokenizer.decode(targets).replace(" ", "")
        assert decoded == "".join(turn["value"] for turn in ends).replace(" ", "")


def test_prompt_is_the_beginning_of_the_dialogue(folder, cases):
    for case in cases:
        template = build(folder, case, as_released=False)
        turns = turns_of(case)
        while turns[0].role == "gpt":
            turns = turns[1:]
        prompt = template.prompt(turns[:-1])
        encoded = template.encode(turns)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert all(label == -100 for label in encoded.labels[: len(prompt)][-4:])
        assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]
