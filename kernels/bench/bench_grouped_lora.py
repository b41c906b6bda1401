"""Times a routed-LoRA feed-forward block beside its frozen base, plain LoRA and a loop over experts.

python kernels/bench/bench_grouped_lora.py [tokens=4096 width=256 inner=704 experts=3 rank=16 repeats=10 out=FILE]

Every figure is a ratio taken in one process: seconds of a machine that does other things mean little. The ways take
turns, so that a slow moment hits all of them; the median is kept.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmmoe.kernels.grouped_lora.op import group_by_expert, grouped_lora, sorted_lora
from mmmoe.kernels.timing import machine, report, seconds_of, settings

DEFAULTS = {"tokens": 4096, "width": 256, "inner": 704, "experts": 3, "rank": 16, "repeats": 10}
SCALE = 2.0
Project = Callable[[str, Tensor], Tensor]


class Block:
    """A frozen SwiGLU block with E LoRA experts on its three projections, run in several ways."""

    def __init__(self, width: int, inner: int, experts: int, rank: int, device: torch.device) -> None:
        self.experts = experts
        self.base, self.a, self.b = {}, {}, {}
        for name, (size_in, size_out) in {
            "gate": (width, inner),
            "up": (width, inner),
            "down": (inner, width),
        }.items():
            self.base[name] = torch.randn(size_out, size_in, device=device) * size_in**-0.5
            a = torch.randn(experts, rank, size_in, device=device) * size_in**-0.5
            self.a[name] = a.requires_grad_()
            self.b[name] = (torch.randn(experts, size_out, rank, device=device) * 0.1).requires_grad_()
        self.router_ED = torch.randn(experts, width, device=device)

    def run(self, x_ND: Tensor, project: Project) -> Tensor:
        """Returns the block's output with a given projection."""
        return project("down", F.silu(project("gate", x_ND)) * project("up", x_ND))

    def frozen(self, x_ND: Tensor) -> Tensor:
        """Nothing but the base."""
        return self.run(x_ND, lambda name, v: F.linear(v, self.base[name]))

    def plain_lora(self, x_ND: Tensor) -> Tensor:
        """One expert for all tokens, written as PEFT writes it."""

        def project(name: str, v: Tensor) -> Tensor:
            update = F.linear(F.linear(v, self.a[name][0]), self.b[name][0])
            return F.linear(v, self.base[name]) + update * SCALE

        return self.run(x_ND, project)

    def plain_lora_fused(self, x_ND: Tensor) -> Tensor:
        """One expert for all tokens by the op, whose second product adds to the base's output."""
        only = torch.zeros(x_ND.shape[0], 1, dtype=torch.int64, device=x_ND.device)

        def project(name: str, v: Tensor) -> Tensor:
            return grouped_lora(F.linear(v, self.base[name]), v, self.a[name][:1], self.b[name][:1], only, scale=SCALE)

        return self.run(x_ND, project)

    def masked(self, x_ND: Tensor) -> Tensor:
        """The op on tokens in their own order, all experts at once."""
        return self._op(x_ND, "masked")

    def sorted_each(self, x_ND: Tensor) -> Tensor:
        """The op on tokens in their own order, grouped anew by each projection."""
        return self._op(x_ND, "sorted")

    def grouped_once(self, x_ND: Tensor) -> Tensor:
        """Tokens grouped once for the whole block, as the layer does on a CPU."""
        groups = group_by_expert(self._route(x_ND), self.experts)

        def project(name: str, v: Tensor) -> Tensor:
            base = F.linear(v, self.base[name])
            return sorted_lora(base, v, self.a[name], self.b[name], groups.counts, scale=SCALE)

        return self.run(x_ND.index_select(0, groups.order_S), project).index_select(0, groups.inverse_S)

    def expert_loop(self, x_ND: Tensor) -> Tensor:
        """The usual loop: every expert's own tokens gathered and scattered, projection by projection."""
        index_N = self._route(x_ND)[:, 0]

        def project(name: str, v: Tensor) -> Tensor:
            y = F.linear(v, self.base[name])
            for e in range(self.experts):
                rows = (index_N == e).nonzero()[:, 0]
                y = y.index_add(0, rows, F.linear(F.linear(v[rows], self.a[name][e]), self.b[name][e]) * SCALE)
            return y

        return self.run(x_ND, project)

    def _op(self, x_ND: Tensor, strategy: str) -> Tensor:
        index_NK = self._route(x_ND)

        def project(name: str, v: Tensor) -> Tensor:
            base = F.linear(v, self.base[name])
            return grouped_lora(base, v, self.a[name], self.b[name], index_NK, scale=SCALE, strategy=strategy)  # type: ignore[arg-type]  # one of Strategy

        return self.run(x_ND, project)

    def _route(self, x_ND: Tensor) -> Tensor:
        return F.linear(x_ND, self.router_ED).softmax(-1).argmax(-1, keepdim=True)


def measure(
    block: Block, ways: list[str], tokens: int, width: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Returns the median seconds of forward and backward of each way."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    cotangent = torch.randn(tokens, width, device=device)
    for _ in range(repeats + 2):
        for way in ways:
            x_ND = torch.randn(tokens, width, device=device, requires_grad=True)
            seconds = seconds_of(lambda: getattr(block, way)(x_ND).backward(cotangent), device)  # noqa: B023  # at once
            times[way].append(seconds)
    return {way: statistics.median(seconds[2:]) for way, seconds in times.items()}


def main(arguments: list[str]) -> None:
    """Measures, prints the ratios and writes them as JSON."""
    size, out = settings(arguments, DEFAULTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    block = Block(size["width"], size["inner"], size["experts"], size["rank"], device)
    ways = ["frozen", "plain_lora", "plain_lora_fused", "masked", "sorted_each", "grouped_once", "expert_loop"]
    seconds = measure(block, ways, size["tokens"], size["width"], size["repeats"], device)
    rows = {
        way: {
            "milliseconds": 1e3 * value,
            "over_frozen": value / seconds["frozen"],
            "over_plain_lora": value / seconds["plain_lora"],
        }
        for way, value in seconds.items()
    }
    result = {"name": "grouped_lora", "size": size, "device": machine(device), "ways": rows}
    report(result, out)


if __name__ == "__main__":
    main(sys.argv[1:])
