"""LoRA experts beside the frozen layer, plain LoRA, peft, MoE-PEFT's way and a loop over experts: time and bytes.

mmmoe bench lora [tokens=4096 width=1024 inner=4096 rank=16 rounds=4 curve_tokens=1024 curve_width=512 ...]

A linear of `width` to `inner` and a gated block, every gradient but the frozen weights', in bfloat16 on a GPU. Who
takes part and what each leaves out stands in lora_contenders.py. First a table at full size: forward and backward,
forward alone, bytes kept for the backward, most bytes alive in a step. Then curves over E, K, R and tokens, one varied
around (8, 2, 16, `curve_tokens`) and all at smaller sizes, so that a CPU is done in minutes. The command `mmmoe` adds
a whole training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from lora_contenders import (
    FROZEN,
    MOE_PEFT,
    OURS,
    PEFT,
    PLAIN,
    PLAIN_ONE,
    Contender,
    Drawn,
    Shape,
    block_contenders,
    has_peft,
    linear_contenders,
)

from mmmoe.kernels.measure import (
    Point,
    Result,
    compare,
    compare_amounts,
    difference,
    here,
    showing,
    take_turns_in_parts,
)
from mmmoe.kernels.memory import MIB, Weighed, weigh
from mmmoe.log import console

ON_GPU = here().type == "cuda"
DEFAULTS = {
    "tokens": 8192 if ON_GPU else 4096,
    "width": 4096 if ON_GPU else 1024,
    "inner": 11008 if ON_GPU else 4096,
    "rank": 16,
    "rounds": 9 if ON_GPU else 4,
    "curve_tokens": 1024,
    "curve_width": 2048 if ON_GPU else 512,
    "curve_inner": 5504 if ON_GPU else 1024,
    "curve_rounds": 3,
}
LEVELS = {"FFN block": block_contenders, "linear": linear_contenders}
BLOCK, LINEAR = LEVELS
EXPERTS_CHOSEN = ((8, 2), (8, 4), (64, 2))
STEP, FORWARD, KEPT, PEAK = "forward + backward", "forward", "kept for the backward", "most bytes at once"
Bounds = dict[tuple[str, int, int, str], dict[str, float]]
CPU_BOUNDS: Bounds = {
    (BLOCK, 8, 2, STEP): {PLAIN: 1.15, MOE_PEFT: 0.55},
    (BLOCK, 8, 4, STEP): {MOE_PEFT: 0.50},
    (BLOCK, 64, 2, STEP): {MOE_PEFT: 0.30},
    (BLOCK, 8, 2, KEPT): {FROZEN: 0.75, MOE_PEFT: 0.25},
    (BLOCK, 8, 4, KEPT): {FROZEN: 0.80},
    (LINEAR, 8, 2, STEP): {PLAIN_ONE: 1.15},
}
GPU_BOUNDS: Bounds = {
    (BLOCK, 8, 2, STEP): {FROZEN: 1.20, PEFT: 1.00},
    (BLOCK, 8, 2, PEAK): {PEFT: 1.00},
    (LINEAR, 8, 2, STEP): {PLAIN_ONE: 1.15},
}
DRAWN_IN_CURVES = (OURS, PLAIN, MOE_PEFT)
AXES = {"experts": (1, 2, 4, 8, 16, 32, 64), "chosen": (1, 2, 4, 8), "rank": (4, 8, 16, 32, 64)}
TOKENS = (0.25, 0.5, 1, 2, 4)
"""Tokens of the curves, times `curve_tokens`."""


def measure(sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    """Yields the table of both levels, then the curves of both."""
    if not has_peft():
        console.print("peft is not installed: its own layers take no part (`pip install peft` adds them)")
    for level in LEVELS:
        for experts, chosen in EXPERTS_CHOSEN:
            shape = Shape(sizes["tokens"], sizes["width"], sizes["inner"], experts, chosen, sizes["rank"])
            yield from _row_of_the_table(level, shape, sizes["rounds"], device)
    square = Shape(sizes["tokens"], sizes["width"], sizes["width"], 8, 2, sizes["rank"])
    yield from _row_of_the_table(LINEAR, square, sizes["rounds"], device)
    for level in LEVELS:
        yield from _curves(level, sizes, device)


def _row_of_the_table(level: str, shape: Shape, rounds: int, device: torch.device) -> Iterator[Result]:
    name = f"{level} {shape.width} to {shape.inner}, E {shape.experts}, K {shape.chosen}"
    console.print(f"{name}: {rounds} rounds of forward and backward", style="dim")
    drawn, contenders = LEVELS[level](shape, device, _dtype(device))
    weighed: dict[str, Weighed] = {}
    with showing(len(contenders)) as show:
        for way, contender in contenders.items():
            show(f"bytes of {way}")
            weighed[way] = _weighed(drawn, contender, device)
    error = difference(weighed[OURS].value, weighed[MOE_PEFT].value)
    parts = {way: contender.parts() for way, contender in contenders.items()}
    # Weighing was each one's first step; on a CPU that is all the warming up there is to do.
    times = take_turns_in_parts(parts, rounds, device, warmup=0 if device.type == "cpu" else 2)
    bounds = GPU_BOUNDS if device.type == "cuda" else CPU_BOUNDS
    others = [way for way in contenders if way != OURS]
    for what, seconds in ((STEP, times[1]), (FORWARD, times[0])):
        bound = bounds.get((level, shape.experts, shape.chosen, what), {})
        for way in others:
            wrong = error if way == MOE_PEFT else None
            limit = bound.get(way)
            yield compare(f"{name}: {what}", seconds[OURS], way, seconds[way], bound=limit, error=wrong)
    for what, size in ((KEPT, lambda w: w.kept), (PEAK, lambda w: w.peak)):
        bound = bounds.get((level, shape.experts, shape.chosen, what), {})
        for way in others:
            own, other = size(weighed[OURS]), size(weighed[way])
            if other:  # a frozen linear keeps nothing
                yield compare_amounts(f"{name}: {what}", own / MIB, way, other / MIB, "MiB", bound=bound.get(way))


def _weighed(drawn: Drawn, contender: Contender, device: torch.device) -> Weighed:
    return weigh(contender.forward, contender.backward, drawn.given(contender), device)


def _curves(level: str, sizes: dict[str, int], device: torch.device) -> Iterator[Result]:
    usual = Shape(sizes["curve_tokens"], sizes["curve_width"], sizes["curve_inner"], 8, 2, 16)
    axes = AXES | {"tokens": tuple(int(usual.tokens * share) for share in TOKENS)}
    known: dict[Shape, dict[str, list[float]]] = {}
    for axis, values in axes.items():
        for value in values:
            shape = replace(usual, **{axis: value})
            shape = replace(shape, chosen=min(shape.chosen, shape.experts))
            if shape not in known:
                known[shape] = _times(level, shape, sizes["curve_rounds"], device)
            times = known[shape]
            for way in DRAWN_IN_CURVES:
                result = compare(f"{level}, {axis} {value}: {way}", times[way], FROZEN, times[FROZEN])
                yield replace(result, sizes=asdict(shape), point=Point(level, axis, value, way))


def _times(level: str, shape: Shape, rounds: int, device: torch.device) -> dict[str, list[float]]:
    _, contenders = LEVELS[level](shape, device, _dtype(device))
    parts = {way: contenders[way].parts() for way in (FROZEN, *DRAWN_IN_CURVES)}
    return take_turns_in_parts(parts, rounds, device, warmup=1)[1]


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
