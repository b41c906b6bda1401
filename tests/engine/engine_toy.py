"""A model with a frozen and a trainable part, batches that depend on the step alone, and runs over them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional

from mmmoe import dist, env
from mmmoe.engine.build import build_engine
from mmmoe.engine.groups import freeze
from mmmoe.engine.loop import fit
from mmmoe.engine.protocol import Engine, StepRecord
from mmmoe.engine.spec import EngineSpec, OptimizerSpec, RateRule, ScheduleSpec, TrainingSpec

WIDTH, INNER, VOCABULARY, POSITIONS, BATCH = 7, 11, 13, 5, 8
TRAINS = ["head.*", "blocks.*.adapter.*", "marks"]


@dataclass(frozen=True)
class ToyOutput:
    """Shaped like a real model's output: a frozen dataclass with terms in a dict."""

    nll_B: Tensor
    num_targets_B: Tensor
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, num_targets: float, num_samples: float) -> Tensor:
        return self.nll_B.sum() / num_targets + 0.01 * self.auxiliary["balance"].sum() / num_samples


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(3, WIDTH) / WIDTH**0.5)
        self.up = nn.Parameter(torch.randn(INNER, 3) * 0.1)
        self.router = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.router(x).float().softmax(-1)
        return ((x @ self.down.T) * gate.to(x.dtype)) @ self.up.T, (gate.mean(1) ** 2).sum(-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, INNER)
        self.adapter = Adapter()
        self.out = nn.Linear(INNER, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        update, balance = self.adapter(x)
        return x + self.out(self.drop(functional.gelu(self.base(x) + update))), balance


class Tower(nn.Linear):
    """Frozen, and run only when a batch has pictures."""

    is_skippable = True


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.tower = Tower(WIDTH, WIDTH, bias=False)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        # The top module's own weight, used where backward needs its value: ZeRO 3 must gather it there.
        self.marks = nn.Parameter(1 + torch.randn(WIDTH) * 0.3)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        for block in self.blocks:
            block.drop.p = dropout

    def forward(self, input_ids_BT: Tensor, labels_BT: Tensor, pixels_BD: Tensor) -> ToyOutput:
        x = self.tokens(input_ids_BT)
        if pixels_BD.any():
            x = x + self.tower(pixels_BD)[:, None]
        balance_B = torch.zeros(len(x))
        for block in self.blocks:
            x, balance = block(x)
            balance_B = balance_B + balance
        logits = self.head(x * self.marks).float()
        nll = functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=-100, reduction="none")
        return ToyOutput(nll.view_as(labels_BT).sum(1), (labels_BT != -100).sum(1), {"balance": balance_B})


@dataclass
class ToyBatch:
    input_ids_BT: Tensor
    labels_BT: Tensor
    pixels_BD: Tensor
    keys: list[str]

    @property
    def num_samples(self) -> int:
        return len(self.keys)

    @property
    def num_targets(self) -> int:
        return int((self.labels_BT != -100).sum())

    @property
    def num_tokens(self) -> int:
        return self.input_ids_BT.numel()

    def to(self, device: torch.device) -> ToyBatch:
        return self

    def inputs(self) -> dict[str, object]:
        return {"input_ids_BT": self.input_ids_BT, "labels_BT": self.labels_BT, "pixels_BD": self.pixels_BD}


class ToySource:
    """Global batches of a step, cut over ranks and micro-batches; samples have unlike numbers of targets."""

    def __init__(self, rank: int, world: int, micro_batch: int) -> None:
        self.rank, self.world, self.micro_batch = rank, world, micro_batch

    def step(self, step: int) -> list[ToyBatch]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(VOCABULARY, (BATCH, POSITIONS), generator=generator)
        labels = ids * 2 % VOCABULARY
        labels[torch.arange(POSITIONS)[None] < torch.randint(POSITIONS, (BATCH, 1), generator=generator)] = -100
        pixels = torch.randn(BATCH, WIDTH, generator=generator)
        # Text alone in the second half of every other step: one of two processes has no picture there.
        pixels[BATCH // 2 :] *= step % 2
        size = BATCH // self.world
        mine = range(self.rank * size, (self.rank + 1) * size, self.micro_batch)
        cuts = [slice(start, start + self.micro_batch) for start in mine]
        return [
            ToyBatch(ids[cut], labels[cut], pixels[cut], [f"sample{step}_{row}" for row in range(cut.start, cut.stop)])
            for cut in cuts
        ]


class Recorder:
    def __init__(self, save_at: tuple[int, ...] = ()) -> None:
        self.records: list[StepRecord] = []
        self.saves: list[int] = []
        self.batches = 0
        self.save_at = save_at

    def on_batch(self, batch: object, output: object) -> None:
        self.batches += 1

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)

    def should_save(self, step: int) -> bool:
        return step in self.save_at

    def is_overdue(self) -> bool:
        return False

    def save(self, step: int) -> None:
        self.saves.append(step)


def toy_training(micro_batch: int = 2, clip: float | None = 0.5, weight_decay: float = 0.1) -> TrainingSpec:
    optimizer = OptimizerSpec(lr=0.02, rates=[RateRule(match="head.*", lr=0.01)], clip=clip, weight_decay=weight_decay)
    return TrainingSpec(
        steps=10, batch=BATCH, micro_batch=micro_batch, optimizer=optimizer, schedule=ScheduleSpec(warmup_ratio=0.2)
    )


def toy_engine(spec: EngineSpec, training: TrainingSpec, dropout: float = 0.0, kind: type[Toy] = Toy) -> Engine:
    torch.manual_seed(3)
    model = kind(dropout)
    freeze(model, TRAINS)
    return build_engine(model, spec, training)


def toy_fit(engine: Engine, training: TrainingSpec, start: int, end: int, total: int = 10) -> list[StepRecord]:
    """Trains steps [start, end) of a schedule of `total`."""
    source = ToySource(env.rank(), env.world_size(), training.micro_batch)
    stopper = Recorder()
    fit(engine, _Until(source, end), training, total, start, stopper, stop=(stop := _Stop(end)))  # type: ignore[arg-type]
    assert stop.reached or end == total
    return stopper.records


class _Until:
    def __init__(self, source: ToySource, end: int) -> None:
        self.source, self.end = source, end

    def step(self, step: int) -> list[ToyBatch]:
        _Stop.now = step
        return self.source.step(step)


class _Stop:
    """Asks to stop before step `end`, as SIGTERM in the step before would."""

    now = 0

    def __init__(self, end: int) -> None:
        self.end = end
        self.reached = False

    @property
    def requested(self) -> bool:
        self.reached = _Stop.now == self.end
        return self.reached

    def __enter__(self) -> _Stop:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _enter(rank: int, world: int, port: int, folder: str, task: Any, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    dist.start(120)
    result = task(*arguments)
    if rank == 0:
        torch.save(result, Path(folder) / "result.pt")
    dist.barrier()
    dist.stop()


def on_processes(world: int, folder: Path, task: Any, *arguments: Any) -> Any:
    """Runs a task on `world` fresh processes and returns the first one's result."""
    mp.spawn(_enter, (world, env.free_port(), str(folder), task, arguments), nprocs=world)
    return torch.load(folder / "result.pt", weights_only=False)
