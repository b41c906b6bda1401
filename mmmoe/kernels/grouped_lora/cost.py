"""What each strategy of `grouped_lora` is expected to cost, forward and backward, and which is the cheapest.

With N tokens, widths D and F, E experts of rank R and K chosen, every strategy costs something for each number of the
rows it passes over, N (D + F) of them:

    masked    m0 + m1 E R            its copies, and the arithmetic of all experts
    permuted  p1 E R + p2 K          half of that arithmetic, and K rows as wide as the output moved about
    fused     f0 + K (f1 + f2 R)     its copies, and for each chosen expert a pass over the row and its arithmetic
              + f3 E R / N           every expert's factors are read, however few its tokens

The CPU's figures are nanoseconds of one thread, fitted to `mmmoe bench grouped_lora` (AMD EPYC, AVX-512, float32). The
GPU's are picoseconds by arithmetic for an H100 (bfloat16; 400 TFLOP/s for large products, 20 for the fused kernels,
which use no matrix units; 2.5 TB/s); they are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["auto", "masked", "permuted", "fused"]


@dataclass(frozen=True)
class Sizes:
    """What the cost depends on."""

    tokens: int
    width: int
    out_width: int
    experts: int
    rank: int
    chosen: int


@dataclass(frozen=True)
class Rates:
    """The constants of the formulas above for one kind of device."""

    m0: float
    m1: float
    p1: float
    p2: float
    f0: float
    f1: float
    f2: float
    f3: float


RATES = {
    "cpu": Rates(m0=1.7, m1=0.062, p1=0.034, p2=4.8, f0=1.1, f1=0.5, f2=0.085, f3=2.6),
    "cuda": Rates(m0=3.2, m1=0.015, p1=0.0075, p2=8.0, f0=2.4, f1=1.6, f2=0.3, f3=2.4),
}


def costs(sizes: Sizes, device: str) -> dict[Strategy, float]:
    """Returns the expected cost of every strategy; only their ratios mean something."""
    rates = RATES.get(device, RATES["cuda"])
    ranks, chosen = sizes.experts * sizes.rank, sizes.chosen
    numbers = sizes.tokens * (sizes.width + sizes.out_width)
    weights = rates.f3 * ranks * (sizes.width + sizes.out_width)
    return {
        "masked": numbers * (rates.m0 + rates.m1 * ranks),
        "permuted": numbers * (rates.p1 * ranks + rates.p2 * chosen),
        "fused": numbers * (rates.f0 + chosen * (rates.f1 + rates.f2 * sizes.rank)) + weights,
    }


def cheapest(sizes: Sizes, device: str, *, can_fuse: bool) -> Strategy:
    """Returns the strategy that costs least; `fused` only where it can run, one expert for all always `masked`."""
    if sizes.experts == 1:
        return "masked"  # which then masks nothing: plain LoRA
    expected = costs(sizes, device)
    if not can_fuse:
        del expected["fused"]
    if device != "cpu":
        del expected["permuted"]  # it reads counts on the host
    best: Strategy = "masked"
    for strategy, cost in expected.items():  # spelt out: torch.compile cannot take the least by a key
        if cost < expected[best]:
            best = strategy
    return best
