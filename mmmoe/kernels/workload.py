"""What the benchmarks of the ops run on: shapes by device, routings even and skewed, and a copy to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmmoe.kernels.measure import Run, here
from mmmoe.kernels.route_topk.op import route_topk
from mmmoe.kernels.route_topk.reference import Routing


@dataclass(frozen=True)
class Workload:
    """N tokens of width D in a type, K of E experts each, and where each goes."""

    tokens: int
    width: int
    experts: int
    chosen: int
    skew: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def name(self) -> str:
        """Returns what tells it from others of the same benchmark."""
        return f"K {self.chosen}{', skewed' if self.skew else ''}"

    def routing(self) -> Routing:
        """Returns a drawn routing; skewed, four of five tokens have the first expert among theirs."""
        logits_NE = torch.randn(self.tokens, self.experts, device=self.device)
        if self.skew:
            logits_NE[: self.tokens * 4 // 5, 0] += 10.0
        return route_topk(logits_NE, self.chosen, "softmax_renormalised")

    def rows(self, count: int) -> torch.Tensor:
        """Returns drawn rows."""
        return torch.randn(count, self.width, device=self.device).to(self.dtype)

    def copy(self, rows: int) -> Run:
        """Returns a copy that reads and writes as many bytes as that many rows have."""
        source = torch.randn(rows * self.width // 2, device=self.device).to(self.dtype)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)


def sizes_of_rows(rounds: int) -> dict[str, int]:
    """Returns what a benchmark of rows runs by default: on a GPU 8192 rows of 4096, on a CPU 4096 of 1024."""
    if here().type == "cuda":
        return {"tokens": 8192, "width": 4096, "experts": 8, "rounds": rounds}
    return {"tokens": 4096, "width": 1024, "experts": 8, "rounds": rounds}


def workloads(size: dict[str, int], device: torch.device) -> list[Workload]:
    """Returns two and eight chosen experts, even and skewed; in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [
        Workload(size["tokens"], size["width"], size["experts"], chosen, skew, dtype, device)
        for chosen in (2, 8)
        for skew in (False, True)
    ]
