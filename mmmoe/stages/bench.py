"""What a mixture of experts costs: one training step of a run's last stage against plain LoRA and no adapters."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmmoe import dist
from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.engine.groups import freeze
from mmmoe.kernels.timing import machine, seconds_of
from mmmoe.log import console
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.keys import canonical
from mmmoe.models.spec import AdapterSpec
from mmmoe.stages.plan import with_size
from mmmoe.stages.spec import RunSpec

ROUNDS, WARMUP = 7, 2
TOKENS, TARGETS = 80, 12
"""Text tokens of a row and how many of them are targets: about what the demo's dialogues have."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of forward and backward of one micro-batch, and the ratio to plain LoRA round by round."""

    what: str
    seconds: float
    to_plain_lora: float
    low: float
    high: float


def bench_step(spec: RunSpec) -> list[Timing]:
    """Prints and returns the timings; the contenders take turns, so that a slow moment hits all of them."""
    stage = spec.stages[-1]
    plain = with_size(stage.adapters, 1, stage.adapters[-1].rank)
    trains = [pattern for pattern in stage.trains if "experts" not in pattern and "router" not in pattern]
    contenders = {
        "no adapters (connector trains)": _model(spec, [], [p for p in trains if "lora" not in p]),
        "plain LoRA": _model(spec, plain, trains),
        "LLaVA-MoLE": _model(spec, list(stage.adapters), stage.trains),
    }
    inputs = _inputs(next(iter(contenders.values())), stage.training.micro_batch)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in track(range(WARMUP + ROUNDS), "timing", console=console, transient=True):
        for name, model in contenders.items():
            seconds = _step(model, inputs)
            if round_ >= WARMUP:
                times[name].append(seconds)
    timings = [_timing(name, times[name], times["plain LoRA"]) for name in contenders]
    _show(timings, spec.name, stage.training.micro_batch)
    return timings


def _model(spec: RunSpec, adapters: list[AdapterSpec], trains: list[str]) -> LlavaMole:
    model = build_model(spec.model, spec.seed)
    add_adapters(model, adapters, spec.seed)
    freeze(model, trains, canonical)
    return model.to(dist.device()).train()


def _inputs(model: LlavaMole, rows: int) -> dict[str, Tensor]:
    device = model.device
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, 1000, (rows, TOKENS), generator=generator)
    ids_BT[:, 1] = IMAGE_ID
    labels_BT = torch.full_like(ids_BT, IGNORE_ID)
    labels_BT[:, -TARGETS:] = ids_BT[:, -TARGETS:]
    features_IPC = torch.randn(rows, model.tower.num_tokens, model.tower.channels, generator=generator)
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return {
        "input_ids_BT": ids_BT.to(device),
        "labels_BT": labels_BT.to(device),
        "attention_mask_BT": mask_BT.to(device),
        "features_IPC": features_IPC.to(device),
    }


def _step(model: LlavaMole, inputs: dict[str, Tensor]) -> float:
    rows = inputs["input_ids_BT"].shape[0]
    share = float(rows * TARGETS), float(rows)
    seconds = seconds_of(lambda: model(**inputs).loss(*share).backward(), model.device)
    model.zero_grad(set_to_none=True)
    return seconds


def _timing(name: str, own: list[float], plain: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    return Timing(name, statistics.median(own), statistics.median(ratios), min(ratios), max(ratios))


def _show(timings: list[Timing], name: str, rows: int) -> None:
    device = machine(dist.device())
    table = Table("forward + backward", "seconds", "to plain LoRA", "range", title=f"{name}, {rows} rows, {device}")
    for t in timings:
        table.add_row(t.what, f"{t.seconds:.3f}", f"{t.to_plain_lora:.2f}", f"{t.low:.2f} to {t.high:.2f}")
    console.print(table)
    out = Path("runs") / "bench_step.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"device": device, "rows": rows, "timings": [asdict(t) for t in timings]}, indent=1))
    console.print(f"written to {out}")
