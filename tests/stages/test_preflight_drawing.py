"""What cannot work when images are drawn, or are to be judged, is told before the start."""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmmoe.config.load import load
from mmmoe.evaluation.spec import BenchmarkSpec, ClipSpec, DrawingSpec, EvaluationSpec
from mmmoe.paths import project_root
from mmmoe.stages import preflight_drawing
from mmmoe.stages.generate import _check_letters
from mmmoe.stages.preflight import problems
from mmmoe.stages.preflight_drawing import problems_of_drawing
from mmmoe.stages.spec import RunSpec

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", '"', " "]


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    """Says that every package is there, whatever is installed."""
    monkeypatch.setattr(preflight_drawing, "find_spec", lambda name: name)


@pytest.fixture
def judge(tmp_path):
    (tmp_path / "reader.onnx").touch()
    return str(tmp_path / "reader.onnx")


def tokenizer_of(folder, *merged):
    """Saves a tokenizer of single letters, and of longer pieces; what is longest comes first."""
    pieces = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *LETTERS, *merged])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    longest = "|".join(sorted(merged, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{longest}|." if longest else "."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def run(tokenizer, *overrides):
    """Returns the small run with another tokenizer and no evaluation."""
    small = [f"model.language.tokenizer={tokenizer}", "evaluation=null", *overrides]
    return load(project_root() / "configs/text_harmony_tiny.yaml", RunSpec, small)


def with_drawing(spec, judge, clip=None):
    asked = EvaluationSpec(
        benchmarks=[BenchmarkSpec(name="write", kind="drawing", file="write.jsonl")],
        drawing=DrawingSpec(judge=judge, clip=clip),
    )
    return spec.model_copy(update={"evaluation": asked})


def test_what_fits_is_not_complained_about(tmp_path, judge):
    assert list(problems_of_drawing(with_drawing(run(tokenizer_of(tmp_path)), judge))) == []


def test_a_judge_that_is_not_there_is_told_with_all_else(tmp_path):
    spec = with_drawing(run(tokenizer_of(tmp_path)), "nowhere/reader.onnx")
    (said,) = [line for line in problems(spec) if line.startswith("evaluation.drawing")]
    assert said.startswith("evaluation.drawing.judge: no file nowhere/reader.onnx; data/prepare_text_harmony.py")


def test_a_judge_that_nothing_can_run(tmp_path, judge, monkeypatch):
    spec = with_drawing(run(tokenizer_of(tmp_path)), judge)
    monkeypatch.setattr(preflight_drawing, "find_spec", lambda name: None)
    (said,) = problems_of_drawing(spec)
    assert said == "evaluation.drawing.judge: reading the file needs the package onnxruntime: pip install 'mmmoe[onnx]'"


def test_a_clip_that_is_not_there(tmp_path, judge):
    clip = ClipSpec(name="ViT-B-32", path="nowhere/clip.safetensors")
    (said,) = problems_of_drawing(with_drawing(run(tokenizer_of(tmp_path)), judge, clip))
    assert said.startswith("evaluation.drawing.clip.path: no file nowhere/clip.safetensors; put the safetensors")


def test_a_family_that_draws_nothing_is_asked_to_draw(judge):
    spec = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec)
    (said,) = problems_of_drawing(with_drawing(spec, judge))
    assert said.startswith("evaluation.benchmarks.write: llava_mole draws no images; leave benchmarks of kind drawing")


@pytest.mark.parametrize(("merged", "found"), [
    (["QU"], "['QU', 'I', 'C', 'K']"), (["QUICK"], "['QUICK']"), (['"Q'], "['U', 'I', 'C', 'K']"),
])  # fmt: skip
def test_letters_that_are_to_lie_on_cells_must_be_ids(merged, found, tmp_path):
    tokenizer = tokenizer_of(tmp_path, *merged)
    (said,) = problems_of_drawing(run(tokenizer))
    assert said.startswith(f'model.decoder.glyphs: the tokenizer makes {found} of "QUICK", but each id')
    assert list(problems_of_drawing(run(tokenizer, "model.decoder.glyphs=null"))) == []


def test_a_template_that_leaves_the_prompt_out(tmp_path):
    plain = "stages.pretrain.template={kind: plain}"
    tokenizer = tokenizer_of(tmp_path)
    (said,) = problems_of_drawing(run(tokenizer, plain))
    assert said.startswith("stages.pretrain.template: plain leaves out what is asked")
    assert list(problems_of_drawing(run(tokenizer, plain, "stages.pretrain.trains=['connector.*']"))) == []


def test_sharding_a_trained_encoder_is_refused_because_it_hangs(tmp_path):
    tower = "model.tower={kind: vit_adapter, config: {model_type: clip_vision_model}}"
    trained = "stages.pretrain.trains=['tower.*']"
    sharded = run(tokenizer_of(tmp_path), "engine.zero=3", tower, trained)
    assert [text for text in problems_of_drawing(sharded) if "hang" in text] == [
        "engine.zero: 3 was seen to hang with a trained vit_adapter (stage pretrain); take zero 2, or leave tower.* "
        "out of trains"
    ]
    for fine in (("engine.zero=2", tower, trained), ("engine.zero=3", tower), ("engine.zero=3", trained)):
        assert not list(problems_of_drawing(run(tokenizer_of(tmp_path), *fine)))


def test_words_of_a_benchmark_that_do_not_fit_on_their_cells_are_told(tmp_path, judge):
    questions = [
        {"id": n, "question": f'Write "{word}" in red.', "answer": word} for n, word in enumerate(["AB", "ABCDEFG"])
    ]
    (tmp_path / "write.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    spec = with_drawing(run(tokenizer_of(tmp_path / "letters")), judge)
    [benchmark] = spec.evaluation.benchmarks
    benchmark = benchmark.model_copy(update={"file": str(tmp_path / "write.jsonl")})
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"benchmarks": [benchmark]})})
    [told] = problems_of_drawing(spec)
    assert told == (
        "evaluation.benchmarks.write: 'ABCDEFG' between quotation marks has 7 letters, but 6 fit; shorten it"
    )


def test_a_prompt_is_refused_before_anything_is_drawn(tmp_path):
    model = run(tokenizer_of(tmp_path, "LL")).model
    _check_letters(model, 'the word "HI"')
    with pytest.raises(ValueError, match="prompt: of 'HELLO' between quotation marks the tokenizer makes"):
        _check_letters(model, 'the word "HELLO"')
    with pytest.raises(ValueError, match="has 7 letters, but 6 fit"):
        _check_letters(model, 'the word "ABCDEFG"')


def test_tasks_are_told_to_a_gate_alone(tmp_path, judge):
    spec = with_drawing(run(tokenizer_of(tmp_path)), judge)
    told = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"tasks": "label"})})
    assert list(problems_of_drawing(told)) == []
    alone = told.model_copy(update={"stages": told.stages[:1]})
    assert list(problems_of_drawing(alone)) == [
        "evaluation.tasks: label, but no stage adds a Slide-LoRA that could be told; leave it out"
    ]
