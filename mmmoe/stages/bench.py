"""What a mixture of experts costs: one training step of a run's last stage against plain LoRA and no adapters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mmmoe import dist
from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.engine.groups import freeze
from mmmoe.kernels.measure import Result, compare, one_thread, take_turns
from mmmoe.log import console
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.models.lora.spec import ExpertsSpec
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.plan import with_size
from mmmoe.stages.spec import RunSpec

ROUNDS = 7
EXPERTS, PLAIN, BARE = "experts", "plain LoRA", "no adapters (the connector trains)"
STEP_BOUND = 1.25
TOKENS, TARGETS = 80, 12
"""Text tokens of a row and how many of them are targets: about what the demo's dialogues have."""


def bench_step(spec: RunSpec) -> list[Result]:
    """Returns what a step of the run's last stage costs over one with plain LoRA, and over one without adapters."""
    stage = spec.stages[-1]
    ranks = [adapter.rank for adapter in stage.adapters if isinstance(adapter, ExpertsSpec)]
    if not ranks:
        raise ValueError(
            f"{spec.name}: its last stage adds no LoRA experts (kind: experts); there is no step to compare"
        )
    plain = with_size(stage.adapters, 1, ranks[-1])
    trains = [pattern for pattern in stage.trains if "experts" not in pattern and "router" not in pattern]
    contenders = {
        EXPERTS: _model(spec, list(stage.adapters), stage.trains),
        PLAIN: _model(spec, plain, trains),
        BARE: _model(spec, [], [p for p in trains if "lora" not in p]),
    }
    rows = stage.training.micro_batch
    inputs = inputs_of(contenders[EXPERTS], rows)
    runs = {name: partial(_step, model, inputs) for name, model in contenders.items()}
    console.print(f"a step of {rows} rows: {', '.join(runs)}", style="dim")
    with one_thread(dist.device()):
        times = take_turns(runs, ROUNDS, dist.device())
    name = f"{spec.name}, a step of {rows} rows with experts"
    return [
        compare(name, times[EXPERTS], PLAIN, times[PLAIN], bound=STEP_BOUND),
        compare(name, times[EXPERTS], BARE, times[BARE]),
    ]


def _model(spec: RunSpec, adapters: list[AdapterSpec], trains: list[str]) -> SplicedModel:
    model = build_model(spec.model, spec.seed)
    add_adapters(model, adapters, spec.seed)
    freeze(model, trains, canonical)
    return model.to(dist.device()).train()


def inputs_of(model: SplicedModel, rows: int) -> dict[str, Any]:
    """Returns what a micro-batch of so many rows, each with an image, gives the model."""
    device = model.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.language.get_input_embeddings().num_embeddings)
    ids_BT = torch.randint(5, min(1000, vocabulary), (rows, TOKENS), generator=generator)
    ids_BT[:, 1] = IMAGE_ID
    labels_BT = torch.full_like(ids_BT, IGNORE_ID)
    labels_BT[:, -TARGETS:] = ids_BT[:, -TARGETS:]
    features_IPC = torch.randn(
        rows, model.tower_of("image").num_tokens, model.tower_of("image").channels, generator=generator
    )
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return {
        "input_ids_BT": ids_BT.to(device),
        "labels_BT": labels_BT.to(device),
        "attention_mask_BT": mask_BT.to(device),
        "features": {"image": features_IPC.to(device)},
    }


def _step(model: SplicedModel, inputs: dict[str, Any]) -> None:
    rows = inputs["input_ids_BT"].shape[0]
    model(**inputs).loss(float(rows * TARGETS), float(rows)).backward()
    model.zero_grad(set_to_none=True)
