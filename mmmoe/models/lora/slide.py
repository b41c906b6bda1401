"""Slide-LoRA (TextHarmony, arXiv 2407.16364): linear layers with experts of each task, and one gate a sample.

The release sets its gate by two phrases of the question (`moe_set_gate`); a learned gate stands in it unused, in forms
a sample and a token. Ours learns a sample's task alone, so the shared experts keep their half. The paper's own gating
network is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.models.lora.experts import LoRAExperts
from mmmoe.models.lora.router import Choice, LogitLayer
from mmmoe.models.lora.spec import SlideLoRASpec
from mmmoe.models.output import ModelOutput

UNKNOWN = -1
"""Task of a sample of which nobody said what it is."""
TERM = "gate"
"""Name of the gate's loss."""
RELEASED = {"lora_moe_A.default": "experts.a_ERD", "lora_moe_B.default": "experts.b_EDR"}
"""The release's ends of names, and ours; its factors are turned."""


class SlideRows:
    """Shared by a gate, which knows the batch, and the layers: the experts of each row and their weights.

    They stay until the next forward: under gradient checkpointing layers run again after the forward, so a forward's
    backward comes before the next forward, as in the training loop.
    """

    def __init__(self) -> None:
        self._index_BK: Tensor | None = None
        self._gate_BK: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SlideRows:
        """Returns one that nobody has told anything: a learned gate's weights hold a graph, which has no copy."""
        return SlideRows()

    def turn(self, index_BK: Tensor, gate_BK: Tensor) -> None:
        """Says what the rows of the next forward have."""
        self._index_BK, self._gate_BK = index_BK, gate_BK

    def choice(self, x_BTD: Tensor, *, may_repeat: bool) -> Choice:
        """Returns the experts of each position (N = B * T).

        Args:
            x_BTD: a layer's input. It may have each row several times, one after the other, as beams do.
            may_repeat: whether that is expected; in training it is a sign of another batch.
        """
        batch, length = x_BTD.shape[:2]
        if self._index_BK is None or self._gate_BK is None:
            raise RuntimeError("a Slide-LoRA runs before its gate was told the batch: call the model, not a part of it")
        known = len(self._index_BK)
        times = batch // known
        if times * known != batch or (times != 1 and not may_repeat):
            raise RuntimeError(
                f"a Slide-LoRA sees {batch} rows, its gate was told {known}: "
                "run a forward's backward before the next forward"
            )
        repeats = times * length
        return Choice(self._index_BK.repeat_interleave(repeats, 0), self._gate_BK.repeat_interleave(repeats, 0))


class SlideLinear(nn.Module):
    """y = W x + b + s sum_e g_e B_e A_e x, with g from the gate; the frozen layer is held untouched as `base`."""

    def __init__(self, base: nn.Linear, spec: SlideLoRASpec, rows: SlideRows) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        fan_in = base.in_features * (spec.rank if spec.init == "released" else 1)
        self.experts = LoRAExperts(spec.num_experts, base.in_features, base.out_features, spec, fan_in)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the adapted output for (B, T, D) inputs."""
        choice = self.rows.choice(x_BTD, may_repeat=not self.training)
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        y_NF: Tensor = self.experts(x_ND, self.base(x_ND), choice)
        return y_NF.view(*x_BTD.shape[:-1], -1)


class SlideGate(nn.Module):
    """Tells the layers which experts each row has: those of its task and the shared ones, each with 1 / (2 n).

    A learned gate begins without a preference. Its weights train with the adapter's; the loss is `with_loss`'s.
    """

    def __init__(self, spec: SlideLoRASpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.rows = SlideRows()
        self.router: LogitLayer | None = None
        if spec.gate == "learned":
            self.router = LogitLayer(width, spec.tasks, bias=False, init_std=None, jitter=0.0)
            nn.init.zeros_(self.router.weight)
        self.heeds_tasks = False
        """Take a task that is known in answering, too, in place of a learned gate's own choice."""
        self._logits_BE: Tensor | None = None
        self._task_B: Tensor | None = None

    def turn(self, task_B: Tensor | None, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Takes a batch in and returns the task (B,) of each row's experts, with soft mixing the most probable one.

        Args:
            task_B: number of each row's task, -1 where nobody knows it; None for all -1.
            x_BTD: embeddings of the sequence.
            mask_BT: True at the positions that a learned gate reads.

        Raises:
            ValueError: A task is not known, and the gate is no learned one, or there is no such task.
        """
        if task_B is None:
            task_B = torch.full((len(x_BTD),), UNKNOWN, device=x_BTD.device)
        self._check(task_B)
        if self.router is None:
            self.rows.turn(*self.hard(task_B))
            return task_B
        self._logits_BE, self._task_B = self.logits(x_BTD, mask_BT), task_B
        chosen_B = self._logits_BE.argmax(dim=1)
        if self.spec.mixing == "soft":
            probability_BE = self._logits_BE.softmax(dim=1)
            if self.heeds_tasks and not self.training:
                told_BE = F.one_hot(task_B.clamp(min=0), self.spec.tasks).to(probability_BE)
                probability_BE = torch.where((task_B == UNKNOWN)[:, None], probability_BE, told_BE)
                chosen_B = probability_BE.argmax(dim=1)
            self.rows.turn(*self.soft(probability_BE))
            return chosen_B
        if self.training or self.heeds_tasks:
            chosen_B = torch.where(task_B == UNKNOWN, chosen_B, task_B)
        self.rows.turn(*self.hard(chosen_B))
        return chosen_B

    def logits(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns the logit of each task (B, E), float32: those of the positions, averaged over those in the mask."""
        assert self.router is not None
        weight_BT = mask_BT.float() / mask_BT.sum(1, keepdim=True).clamp(min=1)
        logits_BE: Tensor = self.router(torch.einsum("btd,bt->bd", x_BTD.float(), weight_BT))
        return logits_BE

    def hard(self, task_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns experts (B, 2n) and weights of rows with one task each."""
        each = self.spec.experts_per_task
        within_K = torch.arange(each, device=task_B.device)
        first_BK = torch.stack([task_B, torch.full_like(task_B, self.spec.tasks)], dim=1) * each
        index_BK = (first_BK[:, :, None] + within_K).flatten(1)
        return index_BK, torch.full_like(index_BK, 0.5 / each, dtype=torch.float32)

    def soft(self, probability_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all experts (B, E) and weights of rows whose tasks are as probable as said."""
        each = self.spec.experts_per_task
        of_tasks_BE = F.pad(probability_BE, (0, 1), value=1.0).repeat_interleave(each, dim=1) * (0.5 / each)
        index_E = torch.arange(self.spec.num_experts, device=probability_BE.device)
        return index_E.expand(len(probability_BE), -1), of_tasks_BE

    def with_loss(self, output: ModelOutput) -> ModelOutput:
        """Returns the output of the last batch with a learned gate's loss: 0 for samples whose task is not known.

        Where the gate does not train, the loss is told and no part of the sum.
        """
        if self.router is None or self._logits_BE is None or self._task_B is None:
            return output
        term_B = F.cross_entropy(self._logits_BE, self._task_B, ignore_index=UNKNOWN, reduction="none")
        self._logits_BE = self._task_B = None
        output = replace(output, auxiliary_layers=output.auxiliary_layers | {TERM: term_B.detach()[:, None]})
        if not self.router.weight.requires_grad or self.spec.gate_weight == 0:
            return output
        return replace(
            output,
            auxiliary=output.auxiliary | {TERM: term_B},
            weights=output.weights | {TERM: self.spec.gate_weight},
        )

    def _check(self, task_B: Tensor) -> None:
        tasks = task_B.tolist()
        wrong = sorted({task for task in tasks if not UNKNOWN <= task < self.spec.tasks})
        if wrong:
            raise ValueError(f"task_B holds {wrong}, but the Slide-LoRA has {self.spec.tasks} tasks, counted from 0")
        unknown = [row for row, task in enumerate(tasks) if task == UNKNOWN]
        if unknown and self.router is None:
            raise ValueError(
                f"a Slide-LoRA with gate {self.spec.gate} must know each sample's task, and row {unknown[0]} of "
                f"{len(tasks)} has none (task_B -1 or not given): give the tasks, as TextHarmony's data does, or "
                "declare gate: learned"
            )


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the release's Slide-LoRA factors under our names; others are left out.

    Theirs are A (E, in, r) and B (E, r, out) beside the frozen weight, ours A (E, r, in) and B (E, out, r).
    """
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in RELEASED.items():
            if name.endswith(theirs):
                found[name.removesuffix(theirs) + ours] = tensor.transpose(1, 2).contiguous()
    return found
