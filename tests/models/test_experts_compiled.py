"""Models with experts under torch.compile: a training step gives the gradients that it gives without."""

from __future__ import annotations

import pytest
import torch
from models_toy import toy_batch
from test_experts_properties import routed_in, toy

SITES = {"linear": ["language.*.gate_proj"], "block": ["language.*.mlp"], "ffn": ["language.*.mlp"]}


@pytest.mark.slow
@pytest.mark.parametrize("level", SITES)
def test_a_compiled_training_step_gives_the_same_gradients(level):
    torch.compiler.reset()
    plain, compiled = (toy(level, "topk", sites=SITES[level]) for _ in range(2))
    plain(**toy_batch()).loss(9, 3).backward()
    output = torch.compile(compiled)(**toy_batch())
    output.loss(9, 3).backward()
    assert output.routing.load_BLME.sum() > 0
    for (name, found), wanted in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("level", SITES)
def test_a_routed_layer_is_one_graph(level):
    torch.compiler.reset()
    layer = routed_in(toy(level, "topk", sites=SITES[level]))[0]
    x = torch.randn(2, 9, 32)
    graphs = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(graphs(x), layer(x))
