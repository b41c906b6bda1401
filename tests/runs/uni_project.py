"""A small whole project of four kinds of media: shapes, moving shapes, tones said to be speech, and noises."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import yaml
from small_project import COLOURS, SHAPES, make_tokenizer, picture, turn

from mmmoe.data.pack import pack

RATE = 16_000
PITCHES = {"low": 220.0, "high": 1760.0}
NOISES = ("hum", "hiss")
WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_mel_bins": 80, "vocab_size": 20,
    "pad_token_id": 0,
}  # fmt: skip
QUESTIONS = {
    "image": ("which shape?", SHAPES),
    "video": ("which colour?", tuple(COLOURS)),
    "speech": ("which pitch?", tuple(PITCHES)),
    "audio": ("which noise?", NOISES),
}
MOE = {
    "kind": "moe", "sites": ["language.*.mlp"], "experts": ["base", "expert_seen", "expert_heard", "base"],
    "lora": {"rank": 2, "alpha": 4}, "balance": {"kind": "per_layer", "weight": 0.01},
}  # fmt: skip


def make_uni_project(folder: Path) -> Path:
    """Writes everything a run needs below `folder` and returns the configuration's path."""
    media = folder / "media"
    media.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for kind, (question, answers) in QUESTIONS.items():
        rows, questions = [], []
        for number in range(32):
            answer = answers[number % len(answers)]
            name = f"{kind}{number}.{ {'image': 'png', 'video': 'mp4'}.get(kind, 'wav') }"
            write_medium(media / name, kind, answer, number, rng)
            rows.append({"id": name, kind: name, "conversations": turn(f"<{kind}>\n{question}", answer)})
            asked = {"id": name, kind: f"media/{name}", "question": question, "answer": answer, "domain": kind}
            questions.append(asked | {"choices": list(answers)})
        (folder / f"{kind}.json").write_text(json.dumps(rows))
        pack(folder / f"{kind}.json", media, folder / "shards" / kind, samples_per_shard=20, domain=kind)
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, questions[:8])))
    make_tokenizer(folder / "tokenizer")
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    return folder / "run.yaml"


def write_medium(path: Path, kind: str, answer: str, number: int, rng: np.random.Generator) -> None:
    """Writes one file whose content has the answer in it."""
    seconds = np.arange(RATE) / RATE
    if kind == "image":
        picture(list(COLOURS)[number % 4], answer, 8 + number % 13).save(path)
    elif kind == "video":
        write_film(path, answer, number)
    elif kind == "speech":
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * PITCHES[answer] * seconds), RATE)
    else:
        hum, hiss = np.sin(2 * np.pi * 90 * seconds), rng.standard_normal(RATE)
        soundfile.write(path, 0.2 * (hum if answer == "hum" else hiss), 22_050 if number % 2 else RATE)


def write_film(path: Path, colour: str, number: int) -> None:
    """Writes a shape that grows over six pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(6))
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for step in range(6):
            frame = av.VideoFrame.from_image(picture(colour, SHAPES[number % 2], 6 + 2 * step))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def configuration(folder: Path) -> dict:
    """Returns the run: two alignments, an expert for what is seen, one for what is heard, and the mixture."""

    def mixture(*kinds: str) -> dict:
        return {"sources": [{"name": k, "shards": str(folder / "shards" / k), "domain": k} for k in kinds]}

    llama = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 400, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    queries = {"queries": 2, "layers": 1, "width": 16, "heads": 2, "query_std": 1.0}
    model = {
        "family": "uni_moe",
        "language": {"kind": "scratch", "tokenizer": str(folder / "tokenizer"), "config": llama},
        "image": {"tower": {"kind": "efficientnet_lite0", "image_size": 32, "stride16": False}},
        "frames": 2,
        "speech": {
            "tower": {"kind": "whisper", "config": WHISPER, "chunk_seconds": 1.0, "pool": 5},
            "connector": {"kind": "speech_decoder"} | queries,
        },
        "audio": {
            "tower": {"kind": "spectrogram_efficientnet", "num_mels": 32, "chunk_seconds": 1.0, "stride16": False},
            "connector": {"kind": "audio_qformer"} | queries,
        },
    }
    training = {"steps": 3, "batch": 8, "micro_batch": 2, "optimizer": {"lr": 3e-3}, "checkpoint": {"every": 2}}
    common = {"template": {"system": ""}, "training": training, "encode_once": True}
    lora = {"kind": "lora", "sites": ["language.*.mlp.*_proj"], "rank": 4, "alpha": 8}
    expert = {"init_from": "align_heard", "adapters": [lora]} | common
    trained = "language.*.mlp.*.lora.*"
    attention = {"kind": "lora", "sites": ["language.*.self_attn.[qkvo]_proj"], "rank": 2, "alpha": 4}
    stages = [
        {"name": "align_seen", "trains": ["connectors.image.*"], "mixture": mixture("image", "video")} | common,
        {
            "name": "align_heard",
            "trains": ["connectors.speech.*", "connectors.audio.*"],
            "mixture": mixture("speech", "audio"),
        }
        | common,
        expert
        | {"name": "expert_seen", "trains": [trained, "connectors.image.*"], "mixture": mixture("image", "video")},
        expert
        | {"name": "expert_heard", "trains": [trained, "connectors.speech.*"], "mixture": mixture("speech", "audio")},
        {
            "name": "moe",
            "init_from": "align_heard",
            "inherits": {"connectors.image.*": "expert_seen", "connectors.speech.*": "expert_heard"},
            "adapters": [MOE, attention],
            "trains": ["*.lora.*", "*.router.*", "connectors.image.*", "connectors.*.projector.*"],
            "mixture": mixture(*QUESTIONS),
        }
        | common,
    ]
    return {
        "name": "small",
        "model": model,
        "stages": stages,
        "engine": {"kind": "local", "processes": 1, "threads": 1},
        "evaluation": {
            "benchmarks": [
                {"name": k, "kind": "multiple_choice", "file": str(folder / f"{k}.jsonl"), "domain": k}
                for k in QUESTIONS
            ],
            "bootstrap": 100,
        },
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
    }
