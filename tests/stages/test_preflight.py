"""What the loader would refuse is told before the start, with what to do about it."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mmmoe.config.load import load
from mmmoe.paths import project_root
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec

SIZES = {
    "model_type": "llama", "vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


def language_folder(folder):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SIZES))
    (folder / "model.safetensors").touch()
    return folder


def told(path, declared, template):
    overrides = [
        f"model.language={{kind: pretrained, path: {path}, config: {json.dumps(declared)}}}",
        f"stages.1.template={{kind: {template}}}",
    ]
    found = list(problems(load(project_root() / "configs/llava_mole_small.yaml", RunSpec, overrides)))
    return [line for line in found if "mixture" not in line and "benchmarks" not in line]


def test_a_folder_that_is_not_what_is_declared_and_a_missing_chat_template(tmp_path):
    path = language_folder(tmp_path)
    config, align, mole = told(path, {**SIZES, "vocab_size": 5}, "chat")
    assert config.startswith("model.language.config: ")
    assert "vocab_size: declared 5, found 4" in config
    assert "`config: null`" in config
    assert align.startswith("stages.align.template: template chat needs a tokenizer with a chat_template")
    assert mole.startswith("stages.mole.template: template chat")


def test_a_folder_that_fits_is_not_complained_about(tmp_path):
    assert [line for line in told(language_folder(tmp_path), None, "vicuna_v1") if "align" not in line] == []


def test_files_of_benchmarks_that_are_not_there(tmp_path):
    (tmp_path / "q.json").touch()
    form = f"{{by: id, file: {tmp_path}/a.json}}"
    overrides = [
        f"evaluation.benchmarks.0.file=[{tmp_path}/q.json]",
        f"evaluation.benchmarks.0.fields={{join: {form}}}",
        f"evaluation.benchmarks.1.file={tmp_path}/t-*.parquet",
    ]
    found = list(problems(load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, overrides)))
    told = [line for line in found if line.startswith("evaluation.benchmarks.name")][:2]
    assert told == [
        f"evaluation.benchmarks.{name}: no file at {tmp_path}/{file}; get the data or correct `file`"
        for name, file in (("name_of_four", "a.json"), ("name", "t-*.parquet"))
    ]


def test_experts_that_see_images_are_not_shared_out():
    spec = load(project_root() / "configs/mova_tiny.yaml", RunSpec, ["engine.ep_size=2"])
    told = [problem for problem in problems(spec) if problem.startswith("engine.ep_size")]
    assert any("mova those without an image have no routing pass; use ep_size 1" in problem for problem in told)


def test_the_best_checkpoint_needs_an_exam_that_asks_for_it():
    overrides = [
        "stages.align.training.checkpoint.keep_best=shape",
        "stages.mole.training.checkpoint.keep_best=shades",
        "stages.mole.evaluate={every: 10}",
        "stages.mole.reuse=true",
    ]
    spec = load(project_root() / "configs/llava_mole_tiny.yaml", RunSpec, overrides)
    align, unasked, reused = [line for line in problems(spec) if "keep_best" in line]
    assert align.startswith("stages.align.training.checkpoint.keep_best: nothing asks 'shape' while the stage trains")
    assert "'shades' is not asked while the stage trains; its `evaluate` asks " in unasked
    assert "set reuse to false" in reused
