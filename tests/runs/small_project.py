"""A small whole project: drawn shapes, a tokenizer, shards, benchmarks and a three-stage configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from warm_start import WarmProcess

from mmmoe.data.pack import pack

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SHAPES = ("circle", "square")
KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def picture(colour: str, shape: str, size: int) -> Image.Image:
    image = Image.new("RGB", (48, 48), "white")
    draw = ImageDraw.Draw(image)
    box = (24 - size, 24 - size, 24 + size, 24 + size)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    return image


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def make_project(folder: Path) -> Path:
    """Writes everything a run needs below `folder` and returns the configuration's path."""
    (folder / "images").mkdir(parents=True)
    rows = {"text": [], "shapes": [], "colours": []}
    for number in range(96):
        colour, shape = KINDS[number % len(KINDS)]
        name = f"{number}.png"
        picture(colour, shape, 8 + number % 13).save(folder / "images" / name)
        rows["text"].append({"id": f"t{number}", "conversations": turn(f"a {colour} {shape}. which shape?", shape)})
        ask = turn("<image>\nwhich shape?", shape)
        rows["shapes"].append({"id": f"s{number}", "image": name, "conversations": ask})
        ask = turn("<image>\nwhich colour?", colour)
        rows["colours"].append({"id": f"c{number}", "image": name, "conversations": ask})
    for source, samples in rows.items():
        (folder / f"{source}.json").write_text(json.dumps(samples))
        shards = folder / "shards" / source
        pack(folder / f"{source}.json", folder / "images", shards, samples_per_shard=40, domain=source)
    make_tokenizer(folder / "tokenizer")
    questions = [
        {"id": str(n), "image": f"images/{n}.png", "question": "which shape?", "answer": KINDS[n % 8][1],
         "choices": list(SHAPES), "domain": "shapes"}
        for n in range(12)
    ]  # fmt: skip
    (folder / "shape.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(folder)))
    return folder / "run.yaml"


def make_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(
        ["which shape? which colour? USER: ASSISTANT: " + " ".join([*COLOURS, *SHAPES])], trainer
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)


def configuration(folder: Path) -> dict:
    """Returns the run's configuration: language, align and mole on a two-layer model."""

    def mixture(*names: str) -> dict:
        return {"sources": [{"name": n, "shards": str(folder / "shards" / n), "domain": n} for n in names]}

    def training(steps: int, lr: float) -> dict:
        return {"steps": steps, "batch": 8, "micro_batch": 2, "optimizer": {"lr": lr}, "checkpoint": {"every": 2}}

    llama = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 400, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    template = {"kind": "vicuna_v1", "system": ""}
    adapters = [
        {"kind": "lora", "sites": ["language.*.self_attn.[qkvo]_proj"], "rank": 2, "alpha": 4, "dropout": 0.1},
        {
            "kind": "experts",
            "level": "block",
            "sites": ["language.*.mlp"],
            "experts": 3,
            "rank": 2,
            "alpha": 4,
            "dropout": 0.1,
        },
    ]
    trains = ["*.lora.*", "*.experts.*", "*.router.*", "connector.*", "bounds.*"]
    return {
        "name": "small",
        "model": {
            "family": "llava_mole",
            "language": {"kind": "scratch", "tokenizer": str(folder / "tokenizer"), "config": llama},
            "tower": {"kind": "efficientnet_lite0", "image_size": 32, "stride16": False},
            "connector": {"position_std": 1.0},
        },
        "stages": [
            {"name": "language", "trains": ["language.*"], "template": template, "mixture": mixture("text"),
             "training": training(4, 1e-3), "reuse": True},
            {"name": "align", "trains": ["connector.*", "bounds.*"], "template": {"kind": "plain"},
             "mixture": mixture("shapes", "colours"), "training": training(4, 1e-3), "encode_once": True},
            {"name": "mole", "adapters": adapters, "trains": trains, "template": template,
             "mixture": mixture("shapes", "colours"), "training": training(6, 1e-3), "encode_once": True},
        ],
        "engine": {"kind": "local", "processes": 1, "threads": 1},
        "evaluation": {
            "benchmarks": [
                {"name": "shape", "kind": "multiple_choice", "file": str(folder / "shape.jsonl"), "domain": "shapes"}
            ],
            "bootstrap": 100,
        },
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
    }  # fmt: skip


def start(*arguments: object) -> WarmProcess:
    """Starts the command line as a process of its own, the leader of a session."""
    return WarmProcess(arguments, os.environ, leads=True)


def losses(run: Path, stage: str) -> list[float]:
    """Returns a stage's losses by step, and checks that no step is missing or double."""
    rows = [json.loads(line) for line in (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]
