"""For each op: inputs drawn from a seed, what the op makes of them forward and backward, and what it should."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmmoe.kernels.combine.op import combine
from mmmoe.kernels.combine.reference import combine_reference
from mmmoe.kernels.dispatch.op import dispatch
from mmmoe.kernels.dispatch.reference import dispatch_reference
from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.kernels.grouped_lora.reference import grouped_lora_reference
from mmmoe.kernels.lora_ffn.fused import ACTIVATIONS
from mmmoe.kernels.lora_ffn.op import Factors, Frozen, lora_ffn
from mmmoe.kernels.lora_ffn.reference import lora_ffn_reference
from mmmoe.kernels.order import order_by_expert, order_in_torch
from mmmoe.kernels.route_topk.op import RULES, route_topk
from mmmoe.kernels.route_topk.reference import route_topk_reference
from mmmoe.kernels.send_order.op import send_order
from mmmoe.kernels.send_order.reference import send_order_reference


def with_gradients(function, leaves, *, seed=1):
    """Returns the value of a function and its gradients for a drawn cotangent."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = torch.autograd.grad((y.double() * cotangent.to(y.device)).sum(), leaves, allow_unused=True)
    zeros = (torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True))
    return y.detach(), *zeros


@dataclass(frozen=True)
class Routed:
    """N tokens of width D over E experts, K chosen, with a capacity, in a type."""

    n: int
    d: int
    e: int
    k: int
    capacity: int | None = None
    dtype: torch.dtype = torch.float32
    skew: bool = False

    def routing(self, seed):
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn(self.n, self.e, generator=rng)
        if self.skew:
            logits[:, self.e // 2] += 100.0
        return route_topk_reference(logits, self.k, "softmax", self.capacity), rng


ROUTED = [
    Routed(0, 8, 4, 2),
    Routed(1, 8, 5, 1),
    Routed(37, 24, 6, 2, capacity=9),
    Routed(20, 7, 3, 3),  # a width that is no multiple of 16 bytes
    Routed(33, 136, 9, 4, dtype=torch.bfloat16),
    Routed(12, 40, 16, 8, capacity=2, dtype=torch.float16),
    Routed(25, 520, 4, 1, skew=True),
]


ROUTES = [  # N, E, K, capacity
    (0, 4, 1, None), (1, 5, 1, None), (70, 8, 2, None), (130, 60, 4, 9), (65, 3, 3, 20), (40, 130, 8, 2)
]  # fmt: skip


def route_case(seed):
    n, e, k, capacity = ROUTES[seed % len(ROUTES)]
    gates = list(RULES)[seed % 3]
    options = {"priority": "choice"} if seed % 4 == 3 else {}
    if seed % 2:
        options["valid_N"] = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.8
    logits = torch.randn(n, e, generator=torch.Generator().manual_seed(seed))

    def check(function):
        routing = function(logits, k, gates, capacity, **options)

        def sent(x):  # what is not sent has gates, but no gradient
            found = function(x, k, gates, capacity, **options)
            return found.gate_NK * (found.inverse_S >= 0).view_as(found.gate_NK)

        return [*routing, *(with_gradients(sent, [logits]) if n else ())]

    return check, route_topk, route_topk_reference


def order_case(seed):
    rng = torch.Generator().manual_seed(seed)
    slots, experts = [(0, 3), (1, 1), (700, 5), (1500, 60), (40, 1024)][seed % 5]
    expert = torch.randint(-1, experts, (slots,), generator=rng)
    capacity = 2**62 if seed % 2 else 7
    return (lambda function: list(function(expert, experts, capacity))), order_by_expert, order_in_torch


def dispatch_case(seed):
    shape = ROUTED[seed % len(ROUTED)]
    routing, rng = shape.routing(seed)
    x = torch.randn(shape.n, shape.d, generator=rng).to(shape.dtype)
    check = lambda function: list(with_gradients(function, [x]))  # noqa: E731
    return (
        check,
        lambda x: dispatch(x, routing.order_S, routing.inverse_S),
        lambda x: dispatch_reference(x, routing.order_S),
    )


def combine_case(seed):
    shape = ROUTED[seed % len(ROUTED)]
    routing, rng = shape.routing(seed)
    rows = torch.randn(shape.n * shape.k, shape.d, generator=rng).to(shape.dtype)
    check = lambda function: list(with_gradients(function, [rows, routing.gate_NK]))  # noqa: E731
    return (
        check,
        lambda rows, gate: combine(rows, gate, routing.order_S, routing.inverse_S),
        lambda rows, gate: combine_reference(rows, gate, routing.inverse_S),
    )


LORA = [  # N, D, F, E, R, K, type
    (0, 8, 8, 3, 4, 1, torch.float32),
    (1, 8, 8, 3, 4, 1, torch.float32),
    (70, 40, 24, 5, 4, 2, torch.float32),
    (67, 130, 9, 3, 17, 3, torch.float32),
    (40, 32, 64, 4, 16, 1, torch.bfloat16),
    (130, 24, 136, 8, 8, 2, torch.float32),
]


def lora_case(seed, strategy="fused", *, gated=None, dtype=None):
    n, d, f, e, r, k, type_ = LORA[seed % len(LORA)]
    rng = torch.Generator().manual_seed(seed)
    shapes = ((n, f), (n, d), (e, r, d), (e, f, r), *([(n, k)] if gated or (gated is None and seed % 2) else []))
    leaves = [torch.randn(shape, generator=rng).to(dtype or type_) for shape in shapes]
    index = torch.rand(n, e, generator=rng).argsort(1)[:, :k]
    if seed % 3 == 0 and k == 1:
        index[:] = e - 1  # one expert takes all
    check = lambda function: list(with_gradients(function, leaves))  # noqa: E731

    def own(base, x, a, b, gate=None):
        return grouped_lora(base, x, a, b, index, gate, scale=1.7, strategy=strategy)

    def reference(base, x, a, b, gate=None):
        return grouped_lora_reference(base, x, a, b, index, gate, scale=1.7)

    return check, own, reference


def send_case(seed):
    tokens, experts, chosen, ranks = [(0, 4, 1, 2), (33, 8, 3, 4), (200, 64, 8, 8), (70, 6, 6, 1)][seed % 4]
    expert = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :chosen]
    return (lambda function: list(function(expert, experts, ranks))), send_order, send_order_reference


FFN = [  # N, D, F, E, R, K, type
    (0, 8, 8, 3, 4, 1, torch.float32),
    (1, 8, 8, 3, 4, 2, torch.float32),
    (70, 12, 24, 5, 4, 2, torch.float32),
    (21, 10, 9, 3, 17, 3, torch.float32),
    (5, 16, 136, 4, 20, 2, torch.float32),
    (40, 16, 160, 4, 16, 1, torch.bfloat16),
    (11, 8, 9, 3, 3, 2, torch.float16),
    (130, 8, 32, 40, 4, 1, torch.float16),
]


def ffn_case(seed, shape=None):
    n, d, f, e, r, k, type_ = shape or FFN[seed % len(FFN)]
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape, size=1.0):
        return (torch.randn(shape, generator=rng) * size).to(type_)

    frozen = Frozen(drawn(f, d, size=d**-0.5), drawn(f, d, size=d**-0.5), drawn(d, f, size=f**-0.5))
    a, b = (e, r, d), (e, f, r)
    leaves = [drawn(n, d), drawn(*a, size=d**-0.5), drawn(*b, size=r**-0.5), drawn(*a, size=d**-0.5)]
    leaves += [drawn(*b, size=r**-0.5), drawn(e, r, f, size=f**-0.5), drawn(e, d, r, size=r**-0.5)]
    leaves.append(torch.rand(n, k, generator=rng).to(type_))
    index = torch.rand(n, e, generator=rng).argsort(1)[:, :k]
    if seed % 3 == 0:
        index[:] = e - 1 if k == 1 else index[:, :1]  # one expert takes all; a token's choices are one expert
    options = {"scale": 0.7, "activation": list(ACTIVATIONS)[seed // len(FFN) % 2]}

    def check(function):
        def run(x, ag, bg, au, bu, ad, bd, gates):
            return function(x, frozen, Factors(ag, bg), Factors(au, bu), Factors(ad, bd), index, gates, **options)

        return list(with_gradients(run, leaves))

    def reference(x, frozen, *pairs_and_rest, **options):  # rounded once: a loop in half types is itself far off
        *pairs, index, gates = pairs_and_rest
        exact = [Factors(*(factor.float() for factor in pair)) for pair in pairs]
        frozen = Frozen(*(weight.float() for weight in frozen))
        return lora_ffn_reference(x.float(), frozen, *exact, index, gates, **options).to(x.dtype)

    return check, lora_ffn, reference


CASES = {
    "route_topk": route_case,
    "order": order_case,
    "send_order": send_case,
    "dispatch": dispatch_case,
    "combine": combine_case,
    "grouped_lora": lora_case,
    "lora_ffn": ffn_case,
}


def assert_same(found, want):
    """Whole numbers are equal; others as near as their type allows."""
    for number, (a, b) in enumerate(zip(found, want, strict=True)):
        if not a.is_floating_point():
            assert torch.equal(a.cpu(), b.cpu()), f"result {number}"
            continue
        rtol = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-9}.get(a.dtype, 3e-5)
        sizes = b.detach().double().abs()
        largest = max(float(sizes.max()) if b.numel() else 0.0, 1.0)  # of sums whose terms are about 1
        torch.testing.assert_close(
            a.cpu(), b.cpu(), rtol=rtol, atol=rtol * largest, msg=lambda m, i=number: f"result {i}: {m}"
        )


def is_same(found, want) -> bool:
    try:
        assert_same(found, want)
    except AssertionError:
        return False
    return True
