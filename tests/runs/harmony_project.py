"""A small whole project of a TextHarmony: words of two letters in strips of pixels, to be read, written and redrawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import yaml
from matplotlib import get_data_path
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont
from small_project import make_tokenizer, turn

from mmmoe.data.pack import pack

HEIGHT, WIDTH = 16, 32
WORDS = ("AB", "CD", "EF", "GH", "BA", "DC")
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 400, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip
UNET = {
    "in_channels": 12, "out_channels": 12, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4,
}  # fmt: skip
PERCEIVER = {"layers": 1, "width": 16, "heads": 2, "inner": 20, "cross_attention_every": 1, "query_std": 1.0}
TRAINED = ["connector.*", "start_D", "text_head.*", "decoder.*"]
SLIDE = {
    "kind": "slide_lora", "sites": ["language.*.self_attn.[qkvo]_proj"], "rank": 2, "alpha": 2, "init": "lora",
    "gate": "learned", "gate_weight": 0.5,
}  # fmt: skip


def strip(word: str, colour: str = "black") -> Image.Image:
    """Returns a word in a font that matplotlib brings."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    ImageDraw.Draw(image).text((6, 1), word, fill=colour, font=font)
    return image


def write_reader(path: Path) -> None:
    """Writes a judge that knows two letters and reads by chance."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 48, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["cells"], strides=[48, 8]),
        helper.make_node("Squeeze", ["cells", "rows"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["scores"], perm=[0, 2, 1]),
    ]
    seen = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 48, "W"])]
    told = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "T", 4])]
    held = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([2]), "rows")]
    graph = helper.make_graph(nodes, "reader", seen, told, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"character": "A\nB"})
    onnx.save_model(model, path)


def make_harmony_project(folder: Path) -> Path:
    """Writes everything a run needs below `folder` and returns the configuration's path."""
    (folder / "images").mkdir(parents=True)
    rows: dict[str, list] = {"read": [], "write": [], "edit": []}
    questions: dict[str, list] = {"read": [], "pick": [], "write": [], "edit": []}
    for word in WORDS:
        for colour in ("black", "red"):
            strip(word, colour).save(folder / "images" / f"{word}_{colour}.png")
        black, red = f"{word}_black.png", f"{word}_red.png"
        write, edit = f'Generate an image of the word "{word}".', f'Paint "{word}" red.'
        rows["read"].append({"image": black, "conversations": turn("<image>\nwhich word?", word)})
        rows["write"].append({"image": black, "conversations": turn(write, "<image>")})
        rows["edit"].append({"image": [black, red], "conversations": turn(f"<image>\n{edit}", "<image>")})
        seen = ("which word?", black)
        asked = {"read": seen, "pick": seen, "write": (write, None), "edit": (edit, black)}
        for name, (question, image) in asked.items():
            one = {"id": word, "question": question, "answer": word, "reference": f"images/{red}", "choices": WORDS}
            questions[name].append(one | ({"image": f"images/{image}"} if image else {}))
    for source, of_source in rows.items():
        (folder / f"{source}.json").write_text(json.dumps(of_source))
        shards = folder / "shards" / source
        pack(folder / f"{source}.json", folder / "images", shards, samples_per_shard=8, domain=source)
    for name, asked in questions.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, asked[:3])))
    make_tokenizer(folder / "tokenizer")
    write_reader(folder / "reader.onnx")
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    return folder / "run.yaml"


def configuration(folder: Path) -> dict:
    """Returns the run: everything learns, then what a second stage leaves free beside a Slide-LoRA."""
    sources = [{"name": n, "shards": str(folder / "shards" / n), "domain": n} for n in ("read", "write", "edit")]

    def stage(name: str, steps: int, trains: list[str]) -> dict:
        training = {
            "steps": steps, "batch": 6, "micro_batch": 3, "optimizer": {"lr": 1e-3}, "checkpoint": {"every": 1},
        }  # fmt: skip
        common = {"template": {"system": ""}, "mixture": {"sources": sources}}
        return {"name": name, "trains": trains, "training": training} | common

    model = {
        "family": "text_harmony",
        "language": {"kind": "scratch", "tokenizer": str(folder / "tokenizer"), "config": LLAMA},
        "tower": {"kind": "vit_adapter", "config": CLIP, "prior_width": 4},
        "connector": {"position_grid": 4, "projector_std": 0.05, "perceiver": {**PERCEIVER, "queries": 3}},
        "synchroniser": {"every": 2, "heads": 2, "points": 2, "base_side": 2},
        "decoder": {
            "height": HEIGHT, "width": WIDTH, "patch": 2, "unet": UNET, "steps": 2, "guidance": 1.0,
            "scheduler": {"prediction_type": "sample", "beta_schedule": "scaled_linear"},
            "perceiver": {**PERCEIVER, "queries": 4, "qk_norm": False}, "glyphs": {"pitch": 8, "channels": 3},
            "synchroniser": {"heads": 2, "points": 2, "value_width": 8},
        },
    }  # fmt: skip
    benchmarks = [
        {"name": name, "kind": kind, "file": str(folder / f"{name}.jsonl"), "max_new_tokens": 4}
        for name, kind in (
            ("read", "short_answer"),
            ("pick", "multiple_choice"),
            ("write", "drawing"),
            ("edit", "drawing"),
        )
    ]
    return {
        "name": "small",
        "model": model,
        "stages": [
            stage("pretrain", 3, ["language.*", "tower.*", *TRAINED]),
            stage("tune", 5, ["language.*.experts.*", "slide.router.*", *TRAINED]) | {"adapters": [SLIDE]},
        ],
        "engine": {"kind": "local", "processes": 1, "threads": 1},
        "evaluation": {
            "benchmarks": benchmarks, "bootstrap": 100,
            "drawing": {"judge": str(folder / "reader.onnx"), "steps": 2, "guidance": 2.0},
        },
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
    }  # fmt: skip
