"""The small project's language and align stages, then two dense experts and a sparse mixture of them."""

from __future__ import annotations

from pathlib import Path

import yaml
from small_project import make_project

MOE = {
    "kind": "moe",
    "sites": ["language.*.mlp"],
    "layers": "interval",
    "experts": ["base", "shape_expert", "colour_expert", "shape_expert"],
    "lora": {"rank": 2, "alpha": 4},
    "balance": {"kind": "per_layer", "weight": 0.01, "choices": "first"},
}


def make_expert_project(folder: Path) -> Path:
    """Writes the project and returns the configuration's path."""
    path = make_project(folder)
    run = yaml.safe_load(path.read_text())
    language, align, last = run["stages"]
    shapes, colours = ({"sources": [source]} for source in last["mixture"]["sources"])
    training = {"steps": 3, "batch": 8, "micro_batch": 2, "optimizer": {"lr": 3e-3}, "checkpoint": {"every": 2}}
    common = {"template": last["template"], "encode_once": True, "training": training}
    lora = {"kind": "lora", "sites": ["language.*.mlp.*_proj"], "rank": 4, "alpha": 8}
    expert = {"init_from": "align", "adapters": [lora], "trains": ["*.lora.*", "connector.*"]} | common
    moe = {
        "name": "moe",
        "init_from": "align",
        "inherits": {"connector.*": "colour_expert"},
        "adapters": [MOE, {"kind": "lora", "sites": ["language.*.self_attn.[qkvo]_proj"], "rank": 2, "alpha": 4}],
        "trains": ["*.lora.*", "*.router.*", "connector.*"],
        "mixture": last["mixture"],
    } | common
    run["stages"] = [
        language,
        align,
        expert | {"name": "shape_expert", "mixture": shapes},
        expert | {"name": "colour_expert", "mixture": colours},
        moe,
    ]
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path
