"""A run folder with made-up but life-like files: three stages, two sources, two modalities, unequal layers."""

import json
import math

import numpy as np
from PIL import Image, ImageDraw

EXPERTS = {0: 2, 1: 3, 2: 4, 3: 3}
"""Experts of each layer."""
SPEC = """name: llava_mole_synthetic
model:
  family: llava_mole
stages:
- name: words
- name: align
- name: experts
note: <script>alert('spec')</script>
"""


def write_run(folder, *, dead_expert=True):
    generator = np.random.default_rng(0)
    (folder / "spec.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(SPEC)
    for name, steps, start, end, sources in (
        ("words", 300, 6.2, 2.1, ["text"]),
        ("align", 120, 4.4, 2.3, ["captions"]),
        ("experts", 240, 2.4, 0.7, ["general", "charts"]),
    ):
        write_stage(folder / "stages" / name / "metrics.jsonl", steps, start, end, sources, generator, dead_expert)
    write_scores(folder / "evaluation", generator)
    ledger = [
        {"time": "2026-01-05T10:00:00+0000", "event": "created", "name": "llava_mole_synthetic"},
        {"time": "2026-01-05T10:01:10+0000", "event": "stage_done", "stage": "words", "step": 300},
        {"time": "2026-01-05T10:02:40+0000", "event": "stage_done", "stage": "experts", "step": 240, "spec": {"a": 1}},
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger) + '{"time": "half')
    return folder


def write_stage(path, steps, start, end, sources, generator, dead_expert):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for step in range(1, steps + 1):
        part = step / steps
        loss = end + (start - end) * math.exp(-6 * part)
        losses = {name: loss * (1 + 0.25 * at) + generator.normal(0, 0.08) for at, name in enumerate(sources)}
        rate = min(part / 0.03, 1.0) * 0.5 * (1 + math.cos(math.pi * part))
        seconds = 0.21 + abs(generator.normal(0, 0.02)) + (0.15 if step % 60 == 0 else 0)
        row = {
            "step": step,
            "loss": float(np.mean(list(losses.values()))),
            "losses": losses,
            "grad_norm": 1.0,
            "lr": [1e-3 * rate, 2e-4 * rate, 2e-4 * rate],
            "seconds": seconds,
            "data_seconds": 0.008,
            "tokens_per_s": 5200 * 0.21 / seconds,
            "memory_mb": 900 + 100 * part,
        }
        if len(sources) > 1:
            row["balance"] = [1 + 0.3 * math.exp(-8 * part) + generator.normal(0, 0.01) for _ in EXPERTS]
            row["z"] = [0.4 + 0.3 * part + 0.1 * at + generator.normal(0, 0.01) for at in EXPERTS]
            row["entropy"] = [0.99 - 0.12 * at * part + generator.normal(0, 0.008) for at in EXPERTS]
            row |= routing(sources, part, generator, dead_expert)
            if dead_expert and step == 50:
                row["alarms"] = [
                    {"kind": "dead", "router": "layer 3", "experts": [2], "share": 0.0024},
                    {"kind": "collapsed", "router": "layer 0", "experts": [1], "share": 0.97},
                ]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def routing(sources, part, generator, dead_expert):
    """Returns a line's load by source, modality and layer; sources and modalities part ways with depth."""
    load = {}
    for source in sources:
        for modality in ("text", "image"):
            for layer, experts in EXPERTS.items():
                share = np.ones(experts)
                lean = part * layer / len(EXPERTS)
                share[0] += lean * (2 if source == "charts" else 0)
                share[1] += lean * (1.5 if modality == "image" else 0.3)
                if dead_expert and layer == 3:
                    share[2] = 0.005
                counts = generator.multinomial(450, share / share.sum()).tolist()
                load.setdefault(source, {}).setdefault(modality, {})[str(layer)] = counts
    return {"load": load, "positions": 450 * 2 * len(sources)}


def write_scores(folder, generator):
    rows = []
    bars = {
        ("trained", "shapes"): 0.84, ("trained", "charts"): 0.61,
        ("blind", "shapes"): 0.34, ("blind", "charts"): 0.31,
        ("untrained", "shapes"): 0.27, ("untrained", "charts"): 0.22,
    }  # fmt: skip
    for (variant, benchmark), score in bars.items():
        kind = "multiple_choice" if benchmark == "shapes" else "short_answer"
        rows.append(
            {
                "variant": variant, "benchmark": benchmark, "domain": "general" if benchmark == "shapes" else "charts",
                "kind": kind, "n": 200, "score": score, "low": score - 0.06, "high": score + 0.055, "chance": 0.25,
                "majority": 0.29, "empty_share": 0.0, "partial": benchmark == "charts", "prompt_hash": "0f3a9c51be27",
                "seconds": 12.3,
            }
        )  # fmt: skip
        path = folder / variant / f"{benchmark}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = [answer_row(folder, benchmark, at, at < score * 40, generator) for at in range(40)]
        path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    (folder / "scores.json").write_text(json.dumps(rows))


def answer_row(folder, benchmark, at, correct, generator):
    colors = ["red", "blue", "green", "orange"]
    answer, other = colors[at % 4], colors[(at + 1) % 4]
    path = folder / "pictures" / f"{at % 4}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (160, 120), "#f3efe6")
        ImageDraw.Draw(image).ellipse((35, 15, 125, 105), fill=answer)
        image.save(path)
    scores = generator.normal(-6, 1, 4)
    scores[colors.index(answer if correct else other)] = -2.5
    is_choice = benchmark == "shapes"
    return {
        "id": str(at), "image": str(path) if at != 20 else str(folder / "gone.png"),
        "question": "Which colour is the disc?" if at % 3 else "What colour is <b>it</b> & why?", "answer": answer,
        "prediction": answer if correct else other, "correct": bool(correct), "choices": colors if is_choice else [],
        "scores": scores.tolist() if is_choice else [], "domain": "general",
    }  # fmt: skip
