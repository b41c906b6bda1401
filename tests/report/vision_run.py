"""The files that a MoVA adds to a run folder: lines of training, answers with routings, agreement, scores, costs."""

import json

EXPERTS = ["sketch", "chart_reader", "sam"]
SPEC = """name: mova_synthetic
model:
  family: mova
  experts:
    sketch: {descriptions: [lines]}
    chart_reader: {descriptions: [charts]}
    sam: {descriptions: [parts]}
evaluation:
  routing: predicted
"""
ANSWERS = {
    "charts": [[0, 1, 0]] * 3 + [[0, 1, 1]],
    "shapes": [[1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]],
    "talk": [[], []],
}
"""Routings by benchmark; of questions without a picture none. Half of the shapes are in a domain of their own."""


def add_vision(folder):
    """Writes them into a folder that has a plain synthetic run."""
    (folder / "spec.yaml").write_text(SPEC)
    path = folder / "stages" / "experts" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for at, row in enumerate(rows):
        row["vision"] = {"charts": line(8, 8, [0, 8, 4 * (at % 2)], 2)}
        if at % 2:
            row["vision"]["general"] = line(4, 0, [0, 0, 0], 2)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [score("charts", 0.75), score("shapes", 0.5), score("talk", 0.5)]
    write(folder / "evaluation" / "scores.json", scores)
    for benchmark, routings in ANSWERS.items():
        answers = [answer(benchmark, at, routing) for at, routing in enumerate(routings)]
        path = folder / "evaluation" / "trained" / f"{benchmark}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    shares = [{"domain": "charts", "n": 2, "predicted": [0, 1, 0], "labels": [0, 0.5, 0.5]}]
    agreement = {"benchmark": "charts", "n": 2, "exact": 0.125, "bits": 0.625, "best": None, "shares": shares}
    write(folder / "evaluation" / "routing.json", [agreement])
    for way, right in {"random": 0.4, "none": 0.3, "sketch+sam": 0.2, "random_partial": 0.9}.items():
        write(folder / f"evaluation_routing_{way}" / "scores.json", [score("charts", right)])
    write(folder / "vision_experts.json", costs())
    return folder


def line(images, enriched, routed, blocks):
    """Returns what a step says of a source; the mean weights are those of the last expert in turn."""
    found = {"images": images, "enriched": enriched, "routed": dict(zip(EXPERTS, routed, strict=True))}
    sam = routed[2] / 8
    return found | ({"gates": [[0.0, 1 - sam * part, sam * part] for part in (0.5, 1)][:blocks]} if enriched else {})


def score(benchmark, right, variant="trained"):
    return {
        "variant": variant, "benchmark": benchmark, "domain": benchmark, "kind": "multiple_choice", "n": 4,
        "score": right, "low": right - 0.1, "high": right + 0.1, "chance": 0.25, "majority": 0.3, "empty_share": 0.0,
        "partial": False, "prompt_hash": "x", "seconds": 1.0,
    }  # fmt: skip


def answer(benchmark, at, routing):
    domain = "round" if benchmark == "shapes" and at % 2 else benchmark
    return {
        "id": str(at), "image": None, "question": "?", "answer": "a", "prediction": "a", "correct": True,
        "choices": [], "scores": [], "domain": domain, "routing": routing,
    }  # fmt: skip


def costs():
    """Returns a file of the bench: towers of 4, 1 and 2 ms beside a base of 2, the adapter 1 and a half an expert."""
    results = []
    for level in ("one image", "batch of 4"):
        for number in range(4):
            parts = {"base tower": 2.0, "experts' towers": 7 / 3 * number, "questions": 0.5, "adapter": 1 + number / 2}
            point = {"level": level, "axis": "experts routed", "at": number}
            sizes = {"images": 3, "routed": number}
            whole = {"value": sum(parts.values()), "ratio": sum(parts.values()) / 12, "sizes": sizes}
            results.append({"name": f"{level}, {number} routed"} | whole)
            results += [{"name": name, "value": ms, "point": point | {"curve": name}} for name, ms in parts.items()]
    towers = {"base tower": (2.0, 96), "sketch": (4.0, 224), "chart_reader": (1.0, 96), "sam": (2.0, 128)}
    results += [{"name": name, "value": ms, "sizes": {"pixels": pixels}} for name, (ms, pixels) in towers.items()]
    about = {"name": "vision_experts", "machine": "a <quick> one", "date": "2026-11-25", "clock": "CPU time"}
    return about | {"results": results}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
