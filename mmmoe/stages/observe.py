"""Watches a stage: one line of metrics a step, a checkpoint when one is due."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmmoe import dist, log
from mmmoe.data.collate import Batch
from mmmoe.data.spec import SourceSpec
from mmmoe.engine.metrics import MetricsFile, peak_memory_mb
from mmmoe.engine.protocol import StepRecord, TrainingBatch, TrainingOutput
from mmmoe.models.moe.place import Traffic
from mmmoe.models.output import ModelOutput, RoutingStatistics
from mmmoe.stages.live import LiveExam
from mmmoe.stages.routing_record import routing_record
from mmmoe.stages.saver import StageSaver
from mmmoe.stages.vision_record import VisionSums
from mmmoe.stages.watch import RouterWatch


class StageObserver:
    """Adds up the micro-batches of a step over all processes and writes the line on the first.

    The line has the loss by source, each auxiliary term by layer, the expert load by source, modality and layer, how
    undecided each layer's routers are, what vision experts did by source, and the alarms that are new. The sums are
    taken by one all-reduce a step: some hundred numbers, whatever the batch.
    """

    def __init__(
        self,
        metrics: MetricsFile | None,
        sources: list[SourceSpec],
        saver: StageSaver,
        watch: RouterWatch,
        traffic: Traffic | None = None,
        exam: LiveExam | None = None,
    ) -> None:
        """Begins a stage.

        Args:
            metrics: The file to write; None on all processes but the first.
            sources: The mixture's sources.
            saver: Writes the checkpoints.
            watch: Looks at the lines for alarms.
            traffic: What this process sends to those that share experts with it.
            exam: Asks the model questions now and then.
        """
        self._metrics = metrics
        self._saver = saver
        self._watch = watch
        self._exam = exam
        self._traffic = traffic or Traffic()
        self._sent = (0, 0)
        self._scores: tuple[int, dict[str, float]] = (0, {})
        self._sources = [source.name for source in sources]
        self._clear()

    def _clear(self) -> None:
        sources = len(self._sources)
        self._nll_S = torch.zeros(sources, dtype=torch.float64)
        self._targets_S = torch.zeros(sources, dtype=torch.float64)
        self._samples = 0.0
        self._auxiliary: dict[str, Tensor] = {}
        self._routing: RoutingStatistics | None = None
        self._load = self._entropy = self._positions = torch.zeros(0, dtype=torch.float64)
        self._vision: VisionSums | None = None

    def should_save(self, step: int) -> bool:
        """Says whether a checkpoint is due."""
        return self._saver.is_due(step, self._scores_at(step))

    def is_overdue(self) -> bool:
        """Says whether this process's clock asks for a checkpoint."""
        return self._saver.is_overdue()

    def save(self, step: int) -> None:
        """Writes a checkpoint, once the lines up to it are on the disk."""
        if self._metrics is not None:
            self._metrics.sync()
        self._saver.save(step, self._scores_at(step))

    def _scores_at(self, step: int) -> dict[str, float]:
        return self._scores[1] if self._scores[0] == step else {}

    def on_batch(self, batch: TrainingBatch, output: TrainingOutput) -> None:
        """Adds one micro-batch of this process."""
        assert isinstance(batch, Batch)
        assert isinstance(output, ModelOutput)
        source_B = batch.source_B.cpu()
        self._nll_S.index_add_(0, source_B, output.nll_B.detach().double().cpu())
        self._targets_S.index_add_(0, source_B, output.num_targets_B.double().cpu())
        self._samples += float(batch.num_samples)
        for name, term_BL in output.auxiliary_layers.items():
            sum_L = term_BL.double().sum(0).cpu()
            self._auxiliary[name] = self._auxiliary.get(name, torch.zeros_like(sum_L)) + sum_L
        if output.routing is not None:
            self._add_routing(output.routing, batch)
        if output.vision is not None:
            if self._vision is None:
                self._vision = VisionSums(output.vision.experts, output.vision.weight_BLE.shape[1], self._sources)
            self._vision.add(output.vision, source_B)

    def _add_routing(self, routing: RoutingStatistics, batch: Batch) -> None:
        load_BLME = routing.load_BLME.double().cpu()
        if self._routing is None:
            self._load = torch.zeros(len(self._sources), *load_BLME.shape[1:], dtype=torch.float64)
            self._entropy = torch.zeros(len(routing.sites), dtype=torch.float64)
            self._positions = torch.zeros(1, dtype=torch.float64)
        self._routing = routing
        self._load.index_add_(0, batch.source_B.cpu(), load_BLME)
        self._entropy += routing.entropy_BL.double().sum(0).cpu()
        self._positions += float(routing.positions_B.sum())

    def on_step(self, record: StepRecord) -> None:
        """Sums over processes, writes the line, starts the next step. A skipped step tells nothing of the model."""
        line = _head(record)
        if record.skipped is None:
            line |= self._told()
        self._sent = (self._traffic.tokens, self._traffic.weights)
        line |= self._asked(record.step)
        if self._metrics is not None:
            alarms = self._watch.see(line)
            self._metrics.append(line | ({"alarms": alarms} if alarms else {}))
        log.reach(record.step)
        self._clear()

    def _told(self) -> dict[str, Any]:
        """Returns what the micro-batches of all processes told. Collective."""
        parts = [self._nll_S, self._targets_S, torch.tensor([self._samples], dtype=torch.float64)]
        names = sorted(self._auxiliary)
        parts += [self._auxiliary[name] for name in names]
        if self._routing is not None:
            parts += [self._load, self._entropy, self._positions]
        if self._vision is not None:
            parts += self._vision.parts()
        flat = dist.sum_over_ranks(torch.cat([part.flatten() for part in parts]).tolist())
        summed = iter(torch.split(torch.tensor(flat, dtype=torch.float64), [part.numel() for part in parts]))
        return {} if self._metrics is None else self._sums(summed, names)

    def _asked(self, step: int) -> dict[str, Any]:
        """Returns what an exam says, if one is due; what it sends to others is no part of a step."""
        if self._exam is None or not self._exam.is_due(step):
            return {}
        sent = self._traffic.tokens, self._traffic.weights
        told = self._exam.sit(step)
        self._scores = step, told["evaluation"]
        self._traffic.tokens, self._traffic.weights = sent
        return told

    def _sums(self, summed: Any, names: list[str]) -> dict[str, Any]:
        nll_S, targets_S, samples = next(summed), next(summed), float(next(summed))
        losses = {s: float(n / t) for s, n, t in zip(self._sources, nll_S, targets_S, strict=True) if t > 0}
        line: dict[str, Any] = {"losses": losses}
        sent = (self._traffic.tokens, self._traffic.weights)
        if any(sent):
            names_of_sent = ("tokens", "weights")
            line["expert_bytes"] = {n: now - then for n, now, then in zip(names_of_sent, sent, self._sent, strict=True)}
        for name in names:
            line[name] = [float(x) / max(samples, 1.0) for x in next(summed)]
        if self._routing is not None:
            load_SLME = next(summed).view(self._load.shape)
            line |= routing_record(self._routing, self._sources, load_SLME, next(summed), float(next(summed)))
        if self._vision is not None:
            line |= self._vision.record(summed)
        return line


def _head(record: StepRecord) -> dict[str, Any]:
    """Returns what every step's line begins with; a number that is none is null."""
    head: dict[str, Any] = {
        "step": record.step,
        "loss": record.loss if math.isfinite(record.loss) else None,
        "grad_norm": record.grad_norm if math.isfinite(record.grad_norm) else None,
        "lr": list(record.rates),
        "samples": record.samples,
        "seconds": round(record.seconds, 4),
        "data_seconds": round(record.data_seconds, 4),
        "tokens_per_s": round(record.tokens / max(record.seconds, 1e-9), 1),
        **peak_memory_mb(),
    }
    return head if record.skipped is None else head | {"skipped": record.skipped}
