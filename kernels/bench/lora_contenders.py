"""Who computes a frozen layer with LoRA, at the level of one linear and of a gated block, and what each leaves out.

frozen       The frozen weights alone: no adapter, the gradient of the input and no other.
plain LoRA   One update for all tokens, written by hand: no router, no gates and no gradient of them.
peft         The same by the peft package's own layers; no dropout, factors in the type of the weights.
MoE-PEFT     All that ours computes, in the order of MoE-PEFT's MixLoRA (block) and MoLA (linear), written anew: frozen
             gate and up once a token, all else expert by expert on its tokens, the down projection included.
expert loop  All that ours computes: whole experts one by one, frozen products included (linear: those once a token).
ours         `lora_ffn` and `grouped_lora`. On an AMD processor with AVX-512 the block's frozen products are ours;
             the others' are MKL's, through torch, which takes 12 to 16 % longer there (mmmoe/kernels/products.py).

Router, its losses and dropout are left out everywhere. MoE-PEFT has a module for each expert's factors; here they are
unbound from a stack, which writes one gradient for each just so (indexing the stack would write E of full size).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmoe.kernels.grouped_lora.op import grouped_lora
from mmmoe.kernels.lora_ffn.op import Factors, Frozen, lora_ffn
from mmmoe.kernels.measure import Run

FROZEN, OURS, LOOP = "frozen", "ours", "expert loop"
PLAIN, PLAIN_ONE, PEFT, MOE_PEFT = "plain LoRA, rank K * R", "plain LoRA, rank R", "peft, rank K * R", "MoE-PEFT's way"
SCALE = 2.0
Project = Callable[[int, Tensor], Tensor]
"""The product of a level's i-th projection, adapted or not."""


@dataclass(frozen=True)
class Shape:
    """N tokens from width D to inner F (and back in a block), E experts of rank R, K chosen."""

    tokens: int
    width: int
    inner: int
    experts: int
    chosen: int
    rank: int


@dataclass
class Contender:
    """One way to compute, the tensors that it wants gradients of, and the cotangent."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    dy: Tensor

    def backward(self, y: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of the leaves."""
        return torch.autograd.grad(y, self.leaves, self.dy)

    def parts(self) -> list[Run]:
        """Returns forward and backward as two runs, the second on what the first left."""
        held: list[Tensor] = []
        return [lambda: held.append(self.forward()), lambda: self.backward(held.pop())]


class Drawn:
    """Input, frozen weights and factors of one shape, one of each for each projection."""

    def __init__(
        self, shape: Shape, projections: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
    ) -> None:
        tokens, experts, rank = shape.tokens, shape.experts, shape.rank

        def draw(*size: int, scale: float = 0.02) -> Tensor:
            return (torch.randn(size, device=device) * scale).to(dtype).requires_grad_()

        def factors(rank: int, *lead: int) -> list[tuple[Tensor, Tensor]]:
            return [(draw(*lead, rank, wide), draw(*lead, out, rank)) for wide, out in projections]

        self.x = draw(tokens, projections[0][0], scale=1.0)
        self.dy = draw(tokens, projections[-1][1], scale=1.0).detach()
        self.weights = [draw(out, wide).detach() for wide, out in projections]
        self.experts = factors(rank, experts)
        self.wide, self.narrow = factors(shape.chosen * rank), factors(rank)
        gate, self.index = torch.randn(tokens, experts, device=device).softmax(1).topk(shape.chosen)
        self.gate = (gate / gate.sum(1, keepdim=True)).to(dtype).requires_grad_()

    def frozen(self, i: int, x: Tensor) -> Tensor:
        """Returns a frozen projection."""
        return F.linear(x, self.weights[i])

    def adapted(self, factors: list[tuple[Tensor, Tensor]]) -> Project:
        """Returns the projections with one LoRA each, as PEFT writes it."""
        return lambda i, x: self.frozen(i, x) + update(x, *factors[i])

    def each_expert(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Returns the factors of one expert after the other."""
        pairs = [zip(a.unbind(), b.unbind(), strict=True) for a, b in self.experts]
        return [list(each) for each in zip(*pairs, strict=True)]

    def chosen(self, e: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens that chose an expert and its gate for them."""
        token, choice = torch.where(self.index == e)
        return token, self.gate[token, choice, None]

    def peft(self, through: Callable[[Tensor, Project], Tensor], rank: int) -> tuple[nn.Module, list[Tensor]]:
        """Returns a module under the peft package, and its factors: the numbers of `wide`."""
        from peft import LoraConfig, inject_adapter_in_model

        with torch.device("meta"):
            layers = nn.ModuleList(nn.Linear(w.shape[1], w.shape[0], bias=False) for w in self.weights)
        for layer, weight in zip(layers, self.weights, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        module = _Module(layers, through)
        config = LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=r"layers\.\d+", lora_dropout=0.0)
        inject_adapter_in_model(config, module)
        for layer, (a, b) in zip(layers, self.wide, strict=True):
            layer.lora_A["default"].weight = nn.Parameter(a.detach())
            layer.lora_B["default"].weight = nn.Parameter(b.detach())
        return module, [parameter for parameter in module.parameters() if parameter.requires_grad]

    def given(self, contender: Contender) -> list[Tensor]:
        """Returns what is there before a step: inputs and weights."""
        return [self.x, self.gate, self.index, self.dy, *self.weights, *contender.leaves]


class _Module(nn.Module):
    def __init__(self, layers: nn.ModuleList, through: Callable[[Tensor, Project], Tensor]) -> None:
        super().__init__()
        self.layers, self.through = layers, through

    def forward(self, x: Tensor) -> Tensor:
        return self.through(x, lambda i, x: self.layers[i](x))


def update(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns a low-rank update."""
    return F.linear(F.linear(x, a), b) * SCALE


def linear(x: Tensor, project: Project) -> Tensor:
    """Returns the one projection of the linear level."""
    return project(0, x)


def block(x: Tensor, project: Project) -> Tensor:
    """Returns a gated block of its three projections."""
    return project(2, F.silu(project(0, x)) * project(1, x))


def linear_contenders(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Drawn, dict[str, Contender]]:
    """Returns every contender at the level of one linear from D to F."""
    drawn = Drawn(shape, [(shape.width, shape.inner)], device, dtype)
    x, gate, index = drawn.x, drawn.gate, drawn.index

    def add_each(y: Tensor) -> Tensor:
        for e, ((a, b),) in enumerate(drawn.each_expert()):
            token, gate_1 = drawn.chosen(e)
            y.index_add_(0, token, update(x[token], a, b) * gate_1)
        return y

    def ours() -> Tensor:
        return grouped_lora(drawn.frozen(0, x), x, *drawn.experts[0], index, gate, scale=SCALE)

    def moe_peft() -> Tensor:
        return drawn.frozen(0, x) + add_each(torch.zeros_like(drawn.dy))

    contenders = _with_experts(drawn, ours, moe_peft, lambda: add_each(drawn.frozen(0, x)))
    narrow = Contender(lambda: linear(x, drawn.adapted(drawn.narrow)), [x, *drawn.narrow[0]], drawn.dy)
    return drawn, _without_experts(drawn, linear, shape) | {PLAIN_ONE: narrow} | contenders


def block_contenders(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Drawn, dict[str, Contender]]:
    """Returns every contender at the level of a gated block from D to F and back."""
    wide, inner = shape.width, shape.inner
    drawn = Drawn(shape, [(wide, inner), (wide, inner), (inner, wide)], device, dtype)
    x, gate, index = drawn.x, drawn.gate, drawn.index

    def ours() -> Tensor:
        pairs = [Factors(a, b) for a, b in drawn.experts]
        return lora_ffn(x, Frozen(*drawn.weights), *pairs, index, gate, scale=SCALE, activation="silu")

    def moe_peft() -> Tensor:
        base_gate, base_up = drawn.frozen(0, x), drawn.frozen(1, x)
        y = torch.zeros_like(x)
        for e, (of_gate, of_up, of_down) in enumerate(drawn.each_expert()):
            token, gate_1 = drawn.chosen(e)
            rows = x[token]
            h = F.silu(base_gate[token] + update(rows, *of_gate)) * (base_up[token] + update(rows, *of_up))
            y.index_add_(0, token, (drawn.frozen(2, h) + update(h, *of_down)) * gate_1)
        return y

    def loop() -> Tensor:
        y = torch.zeros_like(x)
        for e, factors in enumerate(drawn.each_expert()):
            token, gate_1 = drawn.chosen(e)
            y.index_add_(0, token, block(x[token], drawn.adapted(factors)) * gate_1)
        return y

    return drawn, _without_experts(drawn, block, shape) | _with_experts(drawn, ours, moe_peft, loop)


def has_peft() -> bool:
    """Says whether the peft package is here."""
    return find_spec("peft") is not None


def _without_experts(drawn: Drawn, through: Callable[[Tensor, Project], Tensor], shape: Shape) -> dict[str, Contender]:
    x, dy = drawn.x, drawn.dy
    wide = [factor for pair in drawn.wide for factor in pair]
    found = {
        FROZEN: Contender(lambda: through(x, drawn.frozen), [x], dy),
        PLAIN: Contender(lambda: through(x, drawn.adapted(drawn.wide)), [x, *wide], dy),
    }
    if has_peft():
        module, factors = drawn.peft(through, shape.chosen * shape.rank)
        found[PEFT] = Contender(lambda: module(x), [x, *factors], dy)
    return found


def _with_experts(
    drawn: Drawn, ours: Callable[[], Tensor], moe_peft: Callable[[], Tensor], loop: Callable[[], Tensor]
) -> dict[str, Contender]:
    leaves = [drawn.x, drawn.gate, *(factor for pair in drawn.experts for factor in pair)]
    ways = {MOE_PEFT: moe_peft, LOOP: loop, OURS: ours}
    return {name: Contender(way, leaves, drawn.dy) for name, way in ways.items()}
