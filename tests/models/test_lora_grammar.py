"""The adapter grammar: what is refused before a weight is read, and how experts are given to layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from models_toy import toy_model
from pydantic import ValidationError

from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.counts import parameter_table
from mmmoe.models.lora.allocation import BANDS, experts_by_site, layer_number, shaped
from mmmoe.models.lora.block import activation_of
from mmmoe.models.lora.router import Router
from mmmoe.models.lora.spec import AllocationSpec, BalanceSpec, ExpertsSpec, RouterSpec
from mmmoe.models.spec import model_spec

ROOT = Path(__file__).resolve().parents[2]
FAIR = {"level": "ffn", "sites": ["language.*.mlp"], "experts": 4, "rank": 2, "alpha": 4}
TOP2 = {"selection": "topk", "k": 2}


def spec(**changes):
    return ExpertsSpec.model_validate(FAIR | {"router": TOP2} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router": {"selection": "topk", "k": 1}}, r"topk needs k of 2 or more, got 1.*top1_gated"),
        ({"router": {"selection": "topk"}}, "topk needs k of 2 or more, got None"),
        ({"router": {"selection": "dense", "k": 2}}, "k=2 has no meaning with selection dense"),
        ({"router": {"selection": "top_p"}}, "p belongs to top_p, which needs one"),
        ({"router": {"selection": "top1_gated"}}, "level ffn .* must add up to 1; top1_gated's do not"),
        ({"router": {"selection": "top1"}, "balance": {"kind": "none"}}, "no gradient but that of the balance loss"),
        ({"router": {"selection": "top1"}, "balance": {"weight": 0.0}}, "no gradient but that of the balance loss"),
        ({"balance": {"kind": "none", "weight": 0.1}}, "weight=0.1 has no term to weigh"),
        ({"experts": [2, 4], "balance": {"kind": "pooled"}}, "pooled needs as many experts in every layer"),
        (
            {"experts": {"shape": "triangle", "total": 9}, "balance": {"kind": "pooled"}},
            "pooled needs as many experts in every layer",
        ),
        ({"router": TOP2 | {"unit": "sample"}}, "use balance.over micro_batch"),
        ({"level": "linear", "projections": ["gate"]}, "projections belong to levels block and ffn"),
        ({"projections": ["up", "up"]}, "name one twice"),
        ({"experts": 1025}, "less than or equal to 1024"),
        ({"experts": 0}, "greater than or equal to 1"),
        ({"level": "layer"}, "Input should be 'linear', 'block' or 'ffn'"),
        ({"sites": []}, "at least 1 item"),
        ({"router": TOP2 | {"temperature": 2}}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_work_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        spec(**changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"balance": {"kind": "none"}}, {"level": "linear"}, {"experts": [2, 3], "balance": {"kind": "per_layer"}}],
)
def test_what_was_taken_is_taken_again_from_its_dump(changes):
    first = spec(**changes)
    assert ExpertsSpec.model_validate(first.model_dump(mode="json")) == first


def test_what_can_work_is_taken():
    assert spec().num_chosen == 2
    assert spec(router={"selection": "dense"}).num_chosen is None
    assert spec(router={"selection": "top1"}).num_chosen == 1
    spec(router=TOP2 | {"unit": "sample"}, balance={"over": "micro_batch"})
    spec(balance={"kind": "none", "z_weight": 0.1})
    spec(experts=[2, 4], balance={"kind": "per_layer"})


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ("rectangle", [5, 5, 5, 5]), ("triangle", [8, 6, 4, 2]), ("inverted_triangle", [2, 4, 6, 8]),
        ("hourglass", [8, 2, 2, 8]),
    ],
)  # fmt: skip
def test_the_papers_shapes_share_a_budget(shape, counts):
    assert shaped(AllocationSpec(shape=shape, total=160), 32) == [n for n in counts for _ in range(8)]


@pytest.mark.parametrize("shape", BANDS)
@pytest.mark.parametrize(("layers", "total"), [(1, 1), (3, 12), (5, 5), (7, 40), (30, 77), (2, 3)])
def test_any_budget_is_spent_to_the_last_expert(shape, layers, total):
    if shape == "hourglass" and layers < 3:
        with pytest.raises(ValueError, match="an hourglass needs three layers or more"):
            shaped(AllocationSpec(shape=shape, total=total), layers)
        return
    counts = shaped(AllocationSpec(shape=shape, total=total), layers)
    assert len(counts) == layers
    assert sum(counts) == total
    assert min(counts) >= 1


def test_few_layers_keep_the_shape():
    found = {shape: shaped(AllocationSpec(shape=shape, total=12), 3) for shape in ("inverted_triangle", "hourglass")}
    assert found == {"inverted_triangle": [2, 4, 6], "hourglass": [5, 2, 5]}


def test_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match="a total of 2 is less than one for each of 3 layers"):
        shaped(AllocationSpec(shape="triangle", total=2), 3)


def test_sites_of_one_layer_have_as_many_experts():
    sites = ["m.layers.10.q_proj", "m.layers.2.q_proj", "m.layers.2.v_proj"]
    found = experts_by_site(spec(level="linear", experts=[3, 4], balance={"kind": "per_layer"}), sites)
    assert found == {sites[0]: 4, sites[1]: 3, sites[2]: 3}


def test_allocations_that_do_not_fit_are_told():
    unequal = {"balance": {"kind": "per_layer"}}
    with pytest.raises(ValueError, match="the list has 3 numbers, but the sites are in 2 layers"):
        experts_by_site(spec(experts=[2, 2, 2], **unequal), ["a.0.mlp", "a.1.mlp"])
    with pytest.raises(ValueError, match="a token chooses 2, but layer 0 has 1; raise experts or lower router"):
        experts_by_site(spec(experts=[1, 4], **unequal), ["a.0.mlp", "a.1.mlp"])
    with pytest.raises(ValueError, match=r"'language.lm_head' is in none: give it a plain LoRA"):
        layer_number("language.lm_head")


def test_a_router_on_the_head_is_refused():
    with pytest.raises(ValueError, match="is in none: give it a plain LoRA"):
        toy_model().add_adapters([spec(level="linear", sites=["language.lm_head"])])
    with pytest.raises(ValueError, match=r"into the language model, which 'connector.layers.0' is no part of"):
        toy_model().add_adapters([spec(level="linear", sites=["connector.*"])])


def test_routers_are_drawn_as_declared():
    torch.manual_seed(0)
    router = Router(4000, 8, RouterSpec(**TOP2, bias=False, init_std=0.02))
    assert router.bias is None
    assert router.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert Router(4000, 8, RouterSpec(**TOP2)).weight.abs().max() <= 4000**-0.5


def test_jitter_acts_in_training_only():
    router, x = Router(8, 4, RouterSpec(**TOP2, jitter=0.1)), torch.randn(5, 8)
    assert not torch.equal(router.train()(x), router(x))
    assert torch.equal(router.eval()(x), router(x))


def test_activations_are_known_by_their_values():
    assert activation_of(torch.nn.SiLU()) == "silu"
    assert activation_of(torch.nn.GELU(approximate="tanh")) == "gelu_tanh"
    exact = torch.nn.GELU()
    assert activation_of(exact) is exact


def test_dropout_and_other_activations_run_at_the_level_of_blocks():
    model = toy_model()
    model.add_adapters([spec(dropout=0.5)])
    block = model.language.model.layers[0].mlp
    torch.nn.init.normal_(block.experts["gate"].b_EDR)
    x = torch.randn(1, 6, 32)
    assert not torch.equal(block.train()(x), block(x))
    kept = block.eval()(x)
    assert torch.equal(kept, block(x))
    block.activation = block.base.act_fn
    torch.testing.assert_close(block(x), kept)


def counted(adapters):
    declared = model_spec(yaml.safe_load((ROOT / "models/llava_mole/7b.yaml").read_text()))
    model = build_model(declared, seed=0, meta=True)
    add_adapters(model, [ExpertsSpec.model_validate(adapter) for adapter in adapters], seed=0)
    return {row.part: row.total for row in parameter_table(model)}


def stage_adapters(method):
    stage = yaml.safe_load((ROOT / f"stages/{method}/2_experts.yaml").read_text())
    return [adapter for adapter in stage["adapters"] if adapter["kind"] == "experts"]


def test_parameters_of_mola_are_the_closed_form():
    """Per linear E r (in + out) and E in, E being 2, 4, 6, 8 in the quarters of 32 layers."""
    d, f, experts = 4096, 11008, 8 * (2 + 4 + 6 + 8)
    wide, inputs = 4 * (d + d) + 3 * (d + f), 4 * d + 2 * d + f
    found = counted(stage_adapters("mola"))
    assert (found["experts"], found["routers"]) == (experts * 8 * wide, experts * inputs)


def test_parameters_of_mixlora_are_the_closed_form():
    d, f = 4096, 11008
    found = counted(stage_adapters("mixlora"))
    assert (found["experts"], found["routers"]) == (32 * 8 * 16 * 3 * (d + f), 32 * 8 * d)


def test_the_z_loss_pulls_large_logits_down():
    model = toy_model()
    model.add_adapters([spec(balance=BalanceSpec(kind="none", z_weight=1.0))])
    router = model.language.model.layers[0].mlp.router
    with torch.no_grad():
        router.bias.fill_(5.0)
    ids = torch.randint(3, 50, (2, 6))
    output = model(ids, torch.ones_like(ids, dtype=torch.bool))
    assert set(output.auxiliary) == {"z"}
    output.loss(1, 2).backward()
    assert (router.bias.grad > 0).all()
