"""What the routers of one adapter share in a forward: the prompt they may read, and the record of what they chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmmoe.models.lora.allocation import layer_number
from mmmoe.models.lora.router import Choice, Router


@dataclass(frozen=True)
class RoutingRow:
    """What one router did in one forward. T is 1 in `logits` and `probability` where it decides once a sample."""

    logits_BTE: Tensor
    """float32, with graph."""
    probability_BTE: Tensor
    """Softmax over all experts, float32, with graph."""
    index_BTK: Tensor
    """Experts of each position, int64; -1 where fewer than K were chosen; with dense the most probable alone (K 1)."""
    is_trained: bool = True
    """Whether the router has a parameter that trains."""


@dataclass
class RoutingTape:
    """Shared by a model and the routed layers of one adapter.

    Layers write always; what is written while nobody records is dropped, so the second run of a layer under gradient
    checkpointing, or generation, leaves no trace. The prompt's mask stays until the next forward, because that second
    run comes after the forward has ended: with routers that decide once a sample and gradient checkpointing, the
    backward of a forward must run before the next forward, as in the training loop.
    """

    sites: list[str] = field(default_factory=list)
    """Names of the routed layers, in model order."""
    _rows: dict[int, RoutingRow] | None = None
    _prompt_BT: Tensor | None = None
    _mask_BT: Tensor | None = None
    _held: dict[int, Tensor] | None = None

    @cached_property
    def layer_of(self) -> list[int]:
        """Number of the layer that each site is in."""
        return [layer_number(site) for site in self.sites]

    @cached_property
    def layers(self) -> dict[int, list[int]]:
        """Numbers of the layers, and the places of their routers among the sites."""
        numbers = sorted(set(self.layer_of))
        return {number: [place for place, one in enumerate(self.layer_of) if one == number] for number in numbers}

    @contextmanager
    def recording(
        self, prompt_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Iterator[dict[int, RoutingRow]]:
        """Gives the rows of the forward that runs inside, by place among the sites.

        Args:
            prompt_BT: positions that a router which decides once a sample reads; None for all.
            mask_BT: True at real positions; None for all.
        """
        rows: dict[int, RoutingRow] = {}
        self._rows, self._prompt_BT, self._mask_BT = rows, prompt_BT, mask_BT
        try:
            yield rows
        finally:
            self._rows = None

    @contextmanager
    def holding(self, prompt_BT: Tensor) -> Iterator[None]:
        """Inside, decisions once a sample are made in the first forward, on the prompt, and kept."""
        self._held, self._prompt_BT, self._mask_BT = {}, prompt_BT, None
        try:
            yield
        finally:
            self._held = None

    def mask(self, x_BTD: Tensor) -> Tensor | None:
        """Returns which positions of a layer's input are real, None where nobody said."""
        mask_BT = self._mask_BT
        return mask_BT if mask_BT is not None and mask_BT.shape == x_BTD.shape[:2] else None

    def decide(self, router: Router, x_BTD: Tensor, site: int) -> Choice:
        """Returns the experts of each position (N = B * T) and notes what the router did."""
        batch, length, width = x_BTD.shape
        is_once = router.spec.unit == "sample"
        rows = self._sample_logits(router, x_BTD, site) if is_once else router(x_BTD.reshape(-1, width))
        probability = rows.softmax(dim=-1)
        choice = router.choose(probability)
        if is_once:
            gate = choice.gate_NK
            choice = Choice(
                choice.index_NK.repeat_interleave(length, dim=0),
                None if gate is None else gate.repeat_interleave(length, dim=0),
            )
        self.note(
            site,
            lambda: RoutingRow(
                rows.view(batch, -1, rows.shape[-1]),
                probability.view(batch, -1, rows.shape[-1]),
                self._counted(router, choice).view(batch, length, -1),
                any(parameter.requires_grad for parameter in router.parameters()),
            ),
        )
        return choice

    def note(self, site: int, row: Callable[[], RoutingRow]) -> None:
        """Keeps what a router did, if somebody records."""
        if self._rows is not None:
            self._rows[site] = row()

    @staticmethod
    def _counted(router: Router, choice: Choice) -> Tensor:
        """Returns the experts that count as chosen."""
        gate_NK = choice.gate_NK
        if gate_NK is not None and router.spec.selection == "dense":
            return gate_NK.argmax(dim=-1, keepdim=True)
        if gate_NK is not None and router.spec.selection == "top_p":
            return choice.index_NK.masked_fill(gate_NK == 0, -1)
        return choice.index_NK

    def _sample_logits(self, router: Router, x_BTD: Tensor, site: int) -> Tensor:
        """Returns the logits (B, E) of each sample, from the mean over its prompt."""
        if self._held is not None and site in self._held:
            held_BE = self._held[site]
            return held_BE.repeat_interleave(len(x_BTD) // len(held_BE), dim=0)  # beams of a row stay together
        mask_BT = self._prompt_BT
        if mask_BT is None:
            mask_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        if mask_BT.shape != x_BTD.shape[:2]:
            raise RuntimeError(
                f"the router of {self.sites[site]} sees {tuple(x_BTD.shape[:2])} positions and a prompt of "
                f"{tuple(mask_BT.shape)}: run a forward's backward before the next forward"
            )
        weight_BT = mask_BT.float() / mask_BT.sum(1, keepdim=True).clamp(min=1)
        logits_BE: Tensor = router(torch.einsum("btd,bt->bd", x_BTD.float(), weight_BT))
        if self._held is not None:
            self._held[site] = logits_BE
        return logits_BE
