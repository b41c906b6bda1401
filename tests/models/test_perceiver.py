"""Perceiver and visual tokenizer: masks, recomputed layers, weights of other sizes, refusals."""

from __future__ import annotations

import pytest
import torch

from mmmoe.engine.precision import cast_parameters
from mmmoe.models.connectors import perceiver_names, visual_tokenizer_names
from mmmoe.models.connectors.perceiver import PerceiverResampler
from mmmoe.models.connectors.perceiver_spec import PerceiverSpec
from mmmoe.models.connectors.visual_tokenizer import VisualTokenizer
from mmmoe.models.connectors.visual_tokenizer_spec import VisualTokenizerSpec

SPEC = PerceiverSpec(queries=5, layers=3, width=16, heads=2, inner=20)
TOKENIZER = VisualTokenizerSpec(perceiver=SPEC, position_grid=4)


def perceiver(spec=SPEC, out=None):
    torch.manual_seed(0)
    made = PerceiverResampler(spec, 12, out)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def features(images=3, positions=7):
    return torch.randn(images, positions, 12, generator=torch.Generator().manual_seed(1))


def released(module, own_name, candidates):
    """Returns a module's weights under official names, found by asking for the own name of every candidate."""
    own = dict(module.state_dict())
    return {name: own[own_name(name)] for name in candidates if own_name(name) in own}


def official_names(layers):
    norm, linear = ("weight", "bias"), ("weight", "bias")
    inside = ["attention.query", "attention.key", "attention.value", "attention.q_norm", "attention.k_norm"]
    inside += ["output.dense", "output.LayerNorm"]
    names = ["queries", *(f"blip2qformer.layernorm.{kind}" for kind in norm)]
    for number in range(layers):
        parts = [f"{part}.{name}" for part in ("attention", "crossattention") for name in inside]
        parts += ["intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"]
        names += [f"blip2qformer.encoder.layer.{number}.{part}.{kind}" for part in parts for kind in linear]
    return names


def test_sizes():
    assert perceiver()(features()).shape == (3, 5, 16)
    assert perceiver(out=9)(features()).shape == (3, 5, 9)
    assert perceiver()(features(images=0)).shape == (0, 5, 16)
    assert [layer.cross_attention is not None for layer in perceiver().layers] == [True, False, True]


def test_what_is_masked_does_not_matter_and_gets_no_gradient():
    made = perceiver().eval()
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 7])
    first = features().requires_grad_()
    tokens = made(first, mask)
    other = features()
    other[1, 4:] = 1e3
    torch.testing.assert_close(made(other, mask)[:2], tokens[:2])
    torch.testing.assert_close(made(features()[1:2, :4]), tokens[1:2])
    tokens[1].sum().backward()
    assert not first.grad[1, 4:].any()
    assert first.grad[1, :4].any()


def test_an_image_without_anything_to_read_stays_finite():
    made = perceiver()
    tokens = made(features(), torch.zeros(3, 7, dtype=torch.bool))
    tokens.sum().backward()
    torch.testing.assert_close(tokens, made(features()))
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_order_of_features_means_nothing_and_images_do_not_mix():
    made = perceiver().eval()
    tokens = made(features())
    torch.testing.assert_close(made(features().flip(1)), tokens)
    torch.testing.assert_close(torch.cat([made(one[None]) for one in features()]), tokens)


def test_dropout_is_for_training_only_and_recomputed_layers_draw_the_same():
    made = perceiver(PerceiverSpec(queries=5, layers=3, width=16, heads=2, dropout=0.4))
    calm = made.eval()(features())
    assert torch.equal(calm, made(features()))
    made.train()
    results = []
    for enabled in (False, True):
        made.gradient_checkpointing(enabled)
        made.zero_grad()
        torch.manual_seed(3)
        tokens = made(features())
        tokens.square().sum().backward()
        results.append((tokens.detach(), {name: p.grad for name, p in made.named_parameters()}))
    assert not torch.equal(results[0][0], calm)
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name])


def test_every_parameter_gets_a_gradient():
    made = perceiver(out=9)
    made(features()).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_released_queries_of_another_number_are_interpolated_linearly():
    made = perceiver()
    state = released(made, perceiver_names.own_name, official_names(3))
    assert len(state) == len(made.state_dict())
    own = perceiver_names.from_released({f"a.b.{name}": x for name, x in state.items()}, "a.b.", 5)
    assert all(torch.equal(own[name], x) for name, x in made.state_dict().items())
    more = perceiver_names.from_released(state, "", 10)
    want = made.queries_1QC
    assert more["queries_1QC"].shape == (1, 10, 16)
    # Corners are not aligned: a new query lies a quarter before or after an old one.
    torch.testing.assert_close(more["queries_1QC"][0, 0], want[0, 0])
    torch.testing.assert_close(more["queries_1QC"][0, 3], 0.75 * want[0, 1] + 0.25 * want[0, 2])
    torch.testing.assert_close(more["queries_1QC"][0, 4], 0.25 * want[0, 1] + 0.75 * want[0, 2])
    with pytest.raises(ValueError, match=r"no perceiver among these weights: a\.queries is not there"):
        perceiver_names.from_released(state, "a.", 5)


def test_64_queries_of_the_base_become_512():
    queries = torch.randn(1, 64, 768, generator=torch.Generator().manual_seed(2))
    own = perceiver_names.from_released({"queries": queries}, "", 512)["queries_1QC"]
    assert own.shape == (1, 512, 768)
    # New query i lies at (i + 0.5) / 8 - 0.5 among the old ones.
    torch.testing.assert_close(own[0, 12], 0.9375 * queries[0, 1] + 0.0625 * queries[0, 2])
    torch.testing.assert_close(own[0, 11], 0.0625 * queries[0, 0] + 0.9375 * queries[0, 1])


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="width 16 is no multiple of heads 3"):
        PerceiverSpec(width=16, heads=3)


def test_a_visual_tokenizer_adds_positions_and_makes_tokens():
    torch.manual_seed(0)
    made = VisualTokenizer(TOKENIZER, 12, (2, 2), [4, 2, 1], 24)
    tokens, maps = made(features(2, 5), [features(2, 16), features(2, 4), features(2, 1)])
    assert tokens.shape == (2, 5, 24)
    torch.testing.assert_close(maps[0], features(2, 16) + made.position_PC[1:])
    # The middle of a 4 x 4 table read with the cubic kernel that torch has (a = -0.75).
    weights = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    middle = torch.einsum("h,w,hwc->c", weights, weights, made.position_PC[1:].view(4, 4, 12))
    torch.testing.assert_close(maps[2], features(2, 1) + middle)
    assert not made.token_position()[0].any()
    assert "position_PC" not in dict(made.named_parameters())
    with pytest.raises(ValueError, match="10 channels, but sines and cosines"):
        VisualTokenizer(TOKENIZER, 10, (2, 2), [4], 24)


def test_a_visual_tokenizer_in_half_precision_gives_half_precision():
    torch.manual_seed(0)
    made = VisualTokenizer(TOKENIZER, 12, (2, 2), [4], 24)
    exact, _ = made(features(2, 5), [features(2, 16)])
    cast_parameters(made, torch.bfloat16)
    assert made.position_PC.dtype == torch.float32
    tokens, (placed,) = made(features(2, 5), [features(2, 16)])
    assert (tokens.dtype, placed.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (tokens.float() - exact).norm() < 0.03 * exact.norm()


def test_a_released_visual_tokenizer_is_found_in_the_whole_model():
    torch.manual_seed(0)
    made = VisualTokenizer(TOKENIZER, 12, (2, 2), [4], 24)
    names = [f"perceiver_resampler.{name}" for name in official_names(3)]
    state = {
        f"visual_tokenizer.{name}": made.state_dict()[visual_tokenizer_names.own_name(name)]
        for name in [*names, *visual_tokenizer_names.OWN]
        if visual_tokenizer_names.own_name(name) in made.state_dict()
    }
    state |= {"visual_tokenizer.clip_mean": torch.zeros(3), "visual_tokenizer.encoder.x": torch.zeros(1)}
    own = visual_tokenizer_names.from_released(state | {"soi_token": torch.zeros(1)}, 5)
    assert own.keys() == made.state_dict().keys()
    made.load_state_dict(own)
    with pytest.raises(ValueError, match=r"no visual tokenizer among these weights: pos_embed, "):
        visual_tokenizer_names.from_released({"soi_token": torch.zeros(1)}, 5)
