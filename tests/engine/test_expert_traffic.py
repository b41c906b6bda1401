"""What experts spread over processes send: the formula's bytes, a token once to each process, the fewer of two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from engine_toy import on_processes
from moe_toy import EXPERTS, WIDTH, moe_engine, moe_spec

from mmmoe import dist, env
from mmmoe.engine.spec import EngineSpec
from mmmoe.kernels.send_order.op import send_order
from mmmoe.models.moe.exchange import token_bytes, weight_bytes
from mmmoe.models.moe.gate import route
from mmmoe.models.moe.spec import GateSpec


class Wire:
    """Counts what leaves this process in the collectives that move tokens and weights; counts of rows are left out."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Wire:
        self._all_to_all, self._all_gather = torch_dist.all_to_all_single, torch_dist.all_gather_into_tensor

        def all_to_all(out: Any, given: Any, received: Any = None, sent: Any = None, group: Any = None) -> Any:
            rows = sent or [given.shape[0] // torch_dist.get_world_size(group)] * torch_dist.get_world_size(group)
            row_bytes = given[:1].numel() * given.element_size() if given.shape[0] else 0
            if given.dtype != torch.int64:
                self.bytes += (sum(rows) - rows[torch_dist.get_rank(group)]) * row_bytes
            return self._all_to_all(out, given, received, sent, group=group)

        def all_gather(out: Any, given: Any, group: Any = None) -> Any:
            self.bytes += (torch_dist.get_world_size(group) - 1) * given.numel() * given.element_size()
            return self._all_gather(out, given, group=group)

        torch_dist.all_to_all_single, torch_dist.all_gather_into_tensor = all_to_all, all_gather
        return self

    def __exit__(self, *_: object) -> None:
        torch_dist.all_to_all_single, torch_dist.all_gather_into_tensor = self._all_to_all, self._all_gather


def sent(move: str, k: int, tokens: int) -> dict[str, Any]:
    """Forward and backward of one layer: bytes on the wire, by the layer's own count, by the formula, per process."""
    engine, place = moe_engine(EngineSpec(kind="local", ep_size=2), moe_spec(move=move, gate=GateSpec(k=k)))
    layer = engine.module.get_submodule("language.layers.0.mlp")
    torch.manual_seed(env.rank())
    x_BTD = torch.randn(1, tokens, WIDTH, requires_grad=True)
    order = send_order(route(layer.router(x_BTD[0]), layer.spec.gate).expert_NK, EXPERTS, 2)
    leaving = int(order.count_E[1 - place.rank])
    with Wire() as wire:
        layer(x_BTD).sum().backward()
    own = {
        "wire": wire.bytes,
        "counted": place.traffic.tokens + place.traffic.weights,
        "tokens": token_bytes(leaving, WIDTH, 4, k, with_backward=True),
        "weights": weight_bytes(layer.experts, 2, with_backward=True),
        "leaving": leaving,
    }
    return {name: [one[name] for one in dist.gather_objects(own)] for name in own}


def all_cases(cases: list[tuple[str, int, int]]) -> dict[Any, Any]:
    return {case: sent(*case) for case in cases}


def test_bytes_are_the_formulas_and_auto_takes_the_fewer(tmp_path: Path) -> None:
    few, many = 3, 400
    cases = [(move, k, tokens) for move in ("tokens", "weights", "auto") for k in (2, 4) for tokens in (few, many)]
    found = on_processes(2, tmp_path, all_cases, cases)
    for (move, k, tokens), result in found.items():
        assert result["wire"] == result["counted"], (move, k, tokens)
        if move == "auto":
            least = min(sum(result["tokens"]), sum(result["weights"]))
            assert sum(result["wire"]) == least, (k, tokens)
        else:
            # A process sends its own rows out and the results of the other's back, so only the sum is the formula's.
            assert sum(result["wire"]) == sum(result[move]), (move, k, tokens)
    # With all four experts chosen each token goes to the other process once, not twice.
    assert found[("tokens", 4, many)]["leaving"] == [many, many]
    ways = {tokens: sum(found[("auto", 4, tokens)]["wire"]) for tokens in (few, many)}
    assert ways[few] == sum(found[("tokens", 4, few)]["wire"])
    assert ways[many] == sum(found[("weights", 4, many)]["wire"])
