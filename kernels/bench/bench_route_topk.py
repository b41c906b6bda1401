"""Times routing beside the sequence of torch calls that everybody writes: softmax, topk, argsort, bincount, cumsum.

python kernels/bench/bench_route_topk.py [tokens=8192 experts=64 chosen=4 repeats=50 out=FILE]

The two take turns in one process, on inputs that change; the median of the round by round ratio is kept.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmmoe.kernels.route_topk.op import route_topk
from mmmoe.kernels.timing import machine, report, seconds_of, settings

DEFAULTS = {"tokens": 8192, "experts": 64, "chosen": 4, "repeats": 50}


def torch_sequence(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, ...]:
    """Returns gates, experts, counts, offsets, order and inverse."""
    gate_NK, expert_NK = logits_NE.softmax(-1).topk(num_chosen, -1)
    expert_S = expert_NK.reshape(-1)
    order_S = torch.argsort(expert_S, stable=True)
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = torch.arange(order_S.numel(), device=order_S.device)
    count_E = torch.bincount(expert_S, minlength=logits_NE.shape[1])
    return gate_NK, expert_NK, count_E, count_E.cumsum(0), order_S, inverse_S


def main(arguments: list[str]) -> None:
    """Measures, prints the ratio and writes it as JSON."""
    size, out = settings(arguments, DEFAULTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ratios, own, peer = [], [], []
    for round_ in range(size["repeats"] + 5):
        logits_NE = torch.randn(size["tokens"], size["experts"], device=device)
        ours = seconds_of(lambda: route_topk(logits_NE, size["chosen"]), device)  # noqa: B023  # run at once
        theirs = seconds_of(lambda: torch_sequence(logits_NE, size["chosen"]), device)  # noqa: B023  # run at once
        if round_ >= 5:
            ratios.append(ours / theirs)
            own.append(ours)
            peer.append(theirs)
    result = {
        "name": "route_topk",
        "size": size,
        "device": machine(device),
        "milliseconds": 1e3 * statistics.median(own),
        "versus": "softmax, topk, argsort, inverse, bincount, cumsum in torch",
        "versus_milliseconds": 1e3 * statistics.median(peer),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }
    report(result, out)


if __name__ == "__main__":
    main(sys.argv[1:])
