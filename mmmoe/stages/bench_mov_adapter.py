"""What the MoV-Adapter costs for each number of experts an image is routed to, beside the authors' way for batches.

mmmoe bench mov_adapter [images=4 side=10 channels=192 layers=3 width=384 rounds=5]

Seven experts, their channels and grids in proportion to the released ones; each image has others of them. The authors'
way: every cross-attention runs on every image, and weights of zero undo it. It is given our attention and our resizing,
so the ratio is of what is left out alone. An answer is a forward pass without gradients; a training step has those of
every weight. Towers take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmmoe import dist
from mmmoe.kernels.measure import Result, Run, compare, difference, one_thread, take_turns
from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_features import RoutedMap, compact
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec

DEFAULTS = {"images": 4, "side": 10, "channels": 192, "layers": 3, "width": 384, "rounds": 5}
EXPERTS = {
    "dinov2": (1536, 37), "vary": (512, 32), "co_detr": (256, 37), "pix2struct": (1536, 45), "deplot": (768, 45),
    "biomedclip": (768, 14), "sam": (256, 64),
}  # fmt: skip
"""Channels and side of the released experts, for a base tower of BASE."""
BASE = (1024, 48)
CHOSEN = 3
Way = Callable[[], Tensor]
MASKED = "all run, then masked"
BOUNDS = {0: 0.5, 3: 0.8}
"""Of a pass without experts, as routing takes it, and of one with as many as the paper lets an image have."""


@dataclass(frozen=True)
class Batch:
    """An adapter and what a batch of images brings to it."""

    adapter: MoVAdapter
    base_IPC: Tensor
    text_IT: Tensor
    features: dict[str, Tensor]
    """Each expert's features (I, P_e, C_e) of all images."""

    def routing(self, number: int) -> Tensor:
        """Returns vectors of so many experts an image, for each image others."""
        return in_turn(len(self.base_IPC), len(self.features), number).to(self.base_IPC)

    def routed(self, number: int) -> Way:
        """Returns our way: experts run on the images that are routed to them."""
        routing_IE = self.routing(number)
        experts = compact(self.features, routing_IE)
        return lambda: self.adapter(self.base_IPC, experts, routing_IE, self.text_IT)

    def masked(self, number: int) -> Way:
        """Returns the authors' way: experts run on all images."""
        routing_IE = self.routing(number)

        def way() -> Tensor:
            maps = {name: RoutedMap(self.adapter.resized(name, x_IPC), None) for name, x_IPC in self.features.items()}
            return self.adapter.read(self.base_IPC, maps, routing_IE, self.text_IT)

        return way

    def step(self, way: Way) -> None:
        """Runs a way forward, and in training backward to every weight."""
        with torch.set_grad_enabled(self.adapter.training):
            tokens_IMD = way()
        if self.adapter.training:
            torch.autograd.grad(tokens_IMD, list(self.adapter.parameters()), torch.ones_like(tokens_IMD))


def in_turn(images: int, experts: int, number: int) -> Tensor:
    """Returns a routing (I, E) of so many experts an image, each image's set one on from the last; on the host."""
    shift_IE = torch.arange(experts) - torch.arange(images)[:, None]
    return (shift_IE % experts < number).to(torch.int8)


def bench_mov_adapter(given: Mapping[str, int]) -> list[Result]:
    """Returns the ratios of an answer and of a training step, for 0 to all experts.

    Raises:
        ValueError: A size is unknown.
    """
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"unknown sizes {unknown}; mov_adapter has {sorted(DEFAULTS)}")
    sizes, device = DEFAULTS | dict(given), dist.device()
    batch = draw(sizes, device)
    results: list[Result] = []
    with one_thread(device):
        for what, is_training in (("an answer", False), ("a training step", True)):
            batch.adapter.train(is_training)
            ways = {r: partial(batch.step, batch.routed(r)) for r in range(len(EXPERTS) + 1)}
            timed = over_masked(what, ways, partial(batch.step, batch.masked(CHOSEN)), sizes["rounds"], device)
            results += [replace(result, error=error(batch, r), sizes=sizes) for r, result in enumerate(timed)]
    return results


def over_masked(what: str, ways: Mapping[int, Run], masked: Run, rounds: int, device: torch.device) -> list[Result]:
    """Returns what each number of routed experts costs over all of them run; the ways take turns."""
    names = {number: f"{what}, {number} routed" for number in ways}
    times = take_turns({names[n]: run for n, run in ways.items()} | {MASKED: masked}, rounds, device)
    return [
        compare(name, times[name], MASKED, times[MASKED], bound=BOUNDS.get(number)) for number, name in names.items()
    ]


def draw(sizes: Mapping[str, int], device: torch.device) -> Batch:
    """Returns an adapter of random weights, none of them zero, and random features."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base_channels, side = sizes["channels"], sizes["side"]
    channels = {name: width * base_channels // BASE[0] for name, (width, _) in EXPERTS.items()}
    sides = {name: max(1, round(theirs * side / BASE[1])) for name, (_, theirs) in EXPERTS.items()}
    grids = {name: (own, own) for name, own in sides.items()}
    spec = MoVAdapterSpec(layers=sizes["layers"], top_k=CHOSEN)
    adapter = MoVAdapter(spec, base_channels, (side, side), channels, grids, base_channels, sizes["width"])
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=base_channels**-0.5)
    adapter = adapter.to(device, dtype)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(sizes["images"], *shape, device=device, dtype=dtype)

    features = {name: drawn(own * own, channels[name]) for name, own in sides.items()}
    return Batch(adapter, drawn(side * side, base_channels), drawn(base_channels), features)


def error(batch: Batch, number: int) -> float:
    """Returns how far the two ways are apart."""
    with torch.no_grad():
        return difference(batch.routed(number)(), batch.masked(number)())
