"""A small whole project of a MoVA: drawn shapes, random towers, other experts for the shape than for the colour."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from small_project import KINDS, SHAPES, make_tokenizer, picture, turn

from mmmoe.data.pack import pack
from mmmoe.engine import checkpoint
from mmmoe.models.build import build_model
from mmmoe.stages.handover import tensors_of
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.spec import RunSpec

BERT = {
    "model_type": "bert", "vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 3, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 400, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
TRAINED = ["connector.*", "language.*"]


def lora(sites: str, rows: str) -> dict:
    """Returns an adapter on sites of the attention, for routing passes or for answers."""
    return {"kind": "lora", "sites": [f"language.*.self_attn.{sites}_proj"], "rank": 4, "alpha": 8, "rows": rows}


def tower(width: int, side: int) -> dict:
    """Returns a random DINOv2 of one layer; an image of `side` has (side / 8)^2 tokens."""
    config = {
        "model_type": "dinov2", "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2,
        "mlp_ratio": 2, "image_size": side, "patch_size": 8,
    }  # fmt: skip
    return {"kind": "dinov2", "config": config}


def make_mova_project(folder: Path, samples: int = 24) -> Path:
    """Writes everything a run needs below `folder` and returns the configuration's path."""
    (folder / "images").mkdir(parents=True)
    asked = {"shapes": ("which shape?", (1, 0, 0), 1), "colours": ("which colour?", (0, 1, 1), 0)}
    rows: dict[str, list] = {"text": []} | {source: [] for source in asked}
    questions = []
    for number in range(samples):
        kind = KINDS[number % len(KINDS)]
        name = f"{number}.png"
        picture(*kind, 8 + number % 13).save(folder / "images" / name)
        rows["text"].append({"id": f"t{number}", "conversations": turn(f"a {' '.join(kind)}. which shape?", kind[1])})
        for source, (question, routing, place) in asked.items():
            row = {"id": f"{source}{number}", "image": name, "conversations": turn(f"<image>\n{question}", kind[place])}
            rows[source].append(row | {"routing_weights": [0] * 3 if number % 4 == 3 else list(routing)})
        questions.append(
            {"id": str(number), "image": f"images/{name}", "question": "which shape?", "answer": kind[1],
             "choices": list(SHAPES), "domain": "shapes"}
        )  # fmt: skip
    for source, of_source in rows.items():
        (folder / f"{source}.json").write_text(json.dumps(of_source))
        shards = folder / "shards" / source
        pack(folder / f"{source}.json", folder / "images", shards, samples_per_shard=16, domain=source)
    (folder / "shape.jsonl").write_text("\n".join(map(json.dumps, questions[:8])))
    make_tokenizer(folder / "tokenizer")
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    return folder / "run.yaml"


def configuration(folder: Path) -> dict:
    """Returns the run: base tower and adapter without experts, all on given routings, on those by loss, on its own."""

    def mixture(*names: str) -> dict:
        return {"sources": [{"name": n, "shards": str(folder / "shards" / n), "domain": n} for n in names]}

    training = {"steps": 4, "batch": 8, "micro_batch": 2, "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 1}}
    common = {"template": {"system": ""}, "training": training, "encode_once": True}
    tokenizer = str(folder / "tokenizer")
    says = {"shape": "Sees shapes.", "colour": "Sees colours.", "grain": "Sees grain."}
    model = {
        "family": "mova",
        "language": {"kind": "scratch", "tokenizer": tokenizer, "config": LLAMA},
        "tower": tower(64, 32),
        "experts": {
            name: {"tower": tower(width, side), "descriptions": [said, f"{said} Ask it."]}
            for (name, said), width, side in zip(says.items(), (16, 24, 32), (32, 24, 16), strict=True)
        },
        "text": {"config": BERT, "tokenizer": tokenizer, "max_tokens": 32},
        "connector": {"layers": 1},
        "routing_tokens": 1,
    }
    return {
        "name": "small",
        "model": model,
        "stages": [
            common
            | {
                "name": "align",
                "trains": ["connector.*", "tower.*"],
                "mixture": mixture("shapes"),
                "routing": {"kind": "none"},
            },
            common
            | {
                "name": "tune",
                "trains": [*TRAINED, "text.*"],
                "mixture": mixture("shapes", "colours", "text"),
                "routing": {"conversations": {"colours": {}}},
            },
            common
            | {
                "name": "built",
                "adapters": [lora("[ko]", "routing")],
                "trains": TRAINED,
                "mixture": mixture("shapes", "colours"),
                "routing": {"kind": "built", "judge": "tune", "most": 2, "conversations": {"colours": {}}},
            },
            common
            | {
                "name": "named",
                "adapters": [lora("[qv]", "answers")],
                "trains": ["connector.blocks.*.readers.*", "connector.blocks.*.gate.*", "language.*.[qv]_proj.lora.*"],
                "mixture": mixture("shapes", "colours", "text"),
                "routing": {"kind": "predicted", "judge": "built"},
            },
        ],
        "engine": {"kind": "local", "processes": 1, "threads": 1},
        "evaluation": {
            "benchmarks": [
                {"name": "shape", "kind": "multiple_choice", "file": str(folder / "shape.jsonl"), "domain": "shapes"}
            ],
            "routing_labels": 6,
            "bootstrap": 100,
        },
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
    }


def finished_stage(folder: Path, run: RunSpec, *, scale: float = 0.3, seed: int = 5, **patterns: float) -> Heritage:
    """Writes a stage as if training had left it: the connector moved at random, and tensors named by their beginning.

    Args:
        folder: where it is written.
        run: whose model it is of.
        scale: how far the connector moved.
        seed: another one moves it elsewhere.
        patterns: by the part that a name begins with, how far other tensors moved (towers, for example).
    """
    model, rng = build_model(run.model, run.seed), torch.Generator().manual_seed(seed)
    moved = {"connector": scale, "language": 0.0} | patterns
    tensors = {
        name: tensor.detach() + scale * torch.randn(tensor.shape, generator=rng)
        for name, tensor in tensors_of(model).items()
        if (scale := moved.get(name.split(".")[0])) is not None
    }
    declared = {
        "model": run.model.model_dump(mode="json"),
        "adapters": [],
        "template": run.stages[0].template.model_dump(mode="json"),
    }
    state = checkpoint.CheckpointState(1, declared, None, {"run": run.seed}, {"base": "", "parts": {}})
    return Heritage.read(checkpoint.write_at(folder, state, tensors, {}))
