"""The MoV-Adapter: what must hold whatever its weights are (the reference sheet's section i)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from mmmoe.models.connectors.mov_adapter import MoVAdapter
from mmmoe.models.connectors.mov_adapter_attention import GridRotary
from mmmoe.models.connectors.mov_adapter_downsample import glance
from mmmoe.models.connectors.mov_adapter_features import RoutedMap, compact, on_grid, place
from mmmoe.models.connectors.mov_adapter_names import from_released
from mmmoe.models.connectors.mov_adapter_spec import MoVAdapterSpec

CHANNELS = {"a": 24, "b": 16, "c": 8, "d": 20, "e": 12}
GRIDS = {"a": (4, 6), "b": (3, 5), "c": (4, 6), "d": (2, 2), "e": (8, 3)}
GRID, BASE, TEXT, WIDTH = (4, 6), 128, 40, 24
MIXED = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]])
"""None, one, three and four experts; nobody has the third."""
RELEASED = dict(zip("abcdefg", (1536, 512, 256, 1536, 768, 768, 256), strict=True))


def fresh(dtype=torch.float64, **fields):
    torch.manual_seed(0)
    return MoVAdapter(MoVAdapterSpec(**fields), BASE, GRID, CHANNELS, GRIDS, TEXT, WIDTH).to(dtype)


def trained(dtype=torch.float64, **fields):
    """An adapter none of whose weights is at the zero it starts from."""
    adapter = fresh(dtype, **fields)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter


def batch(images=4, dtype=torch.float64, seed=1):
    """Base features, every expert's features and texts."""
    torch.manual_seed(seed)
    features = {n: torch.randn(images, h * w, CHANNELS[n], dtype=dtype) for n, (h, w) in GRIDS.items()}
    base = torch.randn(images, GRID[0] * GRID[1], BASE, dtype=dtype)
    return base, features, torch.randn(images, TEXT, dtype=dtype)


def run(adapter, base, features, text, routing, gates=None):
    return adapter(base, compact(features, routing), routing, text, gates)


def all_run_and_masked(adapter, base, features, text, routing):
    """The authors' way for a batch: every cross-attention on every image, undone by weights of zero."""
    x = base + adapter.position_1PC
    maps = {name: on_grid(features[name], GRIDS[name], GRID) for name in adapter.experts}
    for block in adapter.blocks:
        weight = block.gate(text, x, routing)
        found = torch.stack([block.readers[name](x, maps[name], adapter.rotary) for name in adapter.experts], 1)
        x = x + (found * weight[:, :, None, None]).sum(1)
        normed = block.attention_norm(x)
        x = x + block.attention(normed, normed, adapter.rotary)
        x = x + block.mlp(block.mlp_norm(x))
    x = ((x + base) / 2).transpose(1, 2).unflatten(2, GRID)
    return adapter.projector(adapter.downsample(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_adapter_is_the_projector_on_pooled_base_features_whatever_is_routed(dtype):
    adapter, (base, features, text) = fresh(dtype), batch(dtype=dtype)
    pooled = F.adaptive_avg_pool2d(base.transpose(1, 2).unflatten(2, GRID), (2, 3)).flatten(2).transpose(1, 2)
    want = adapter.projector(pooled)
    for routing in (MIXED, torch.zeros_like(MIXED), torch.ones_like(MIXED)):
        assert torch.equal(run(adapter, base, features, text, routing), want)


def test_no_expert_is_the_pure_base_path_exactly():
    adapter, (base, features, text) = trained().eval(), batch()
    x = base + adapter.position_1PC
    for block in adapter.blocks:
        normed = block.attention_norm(x)
        x = x + block.attention(normed, normed, adapter.rotary)
        x = x + block.mlp(block.mlp_norm(x))
    x = ((x + base) / 2).transpose(1, 2).unflatten(2, GRID)
    want = adapter.projector(adapter.downsample(x).flatten(2).transpose(1, 2))
    nothing = torch.zeros_like(MIXED)
    assert torch.equal(run(adapter, base, features, text, nothing), want)
    assert torch.equal(adapter(base, {}, nothing, text * 0), want)  # nor are the questions read
    assert torch.equal(run(adapter.train(), base, features, text, nothing), want)


def test_each_bit_of_the_routing_changes_the_tokens():
    adapter, (base, features, text) = trained().eval(), batch(images=1)
    nothing = torch.zeros(1, 5)
    without = run(adapter, base, features, text, nothing)
    for e in range(5):
        routing = nothing.clone()
        routing[0, e] = 1
        assert not torch.allclose(run(adapter, base, features, text, routing), without, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_of_at_most_three_routed_experts_and_sum_to_one(dtype):
    adapter = trained(dtype).eval()
    routing = torch.tensor(list(itertools.product((0, 1), repeat=5)))
    gates = []
    run(adapter, *batch(len(routing), dtype), routing, gates)
    assert len(gates) == 3
    number = routing.sum(1)
    for weight in gates:
        assert not weight[routing == 0].any()
        assert torch.equal((weight > 0).sum(1), number.clamp(max=3))
        tolerance = {"atol": 1e-6 if dtype == torch.float32 else 1e-2, "rtol": 0}
        torch.testing.assert_close(weight.float().sum(1), (number > 0).float(), **tolerance)
    rejected = (gates[0] == 0) & (routing == 1)
    largest = torch.where(rejected, -1, gates[0]).amax(1)[number > 3]
    assert len(largest) == 6
    assert (largest > 0).all()


def test_the_kept_weights_are_the_largest_of_the_softmax():
    adapter, (base, features, text) = trained(layers=1), batch()
    gates = []
    run(adapter, base, features, text, torch.ones_like(MIXED), gates)
    mean = (base + adapter.position_1PC).mean(1)
    probability = adapter.blocks[0].gate.layers(torch.cat([text, mean], 1)).softmax(1)
    kept, index = probability.topk(3, dim=1)
    want = torch.zeros_like(probability).scatter(1, index, kept / kept.sum(1, keepdim=True))
    torch.testing.assert_close(gates[0], want.detach(), atol=1e-12, rtol=0)


def test_of_equal_weights_the_first_declared_are_kept():
    gates = []
    run(fresh(), *batch(), torch.ones_like(MIXED), gates)
    for weight in gates:
        torch.testing.assert_close(weight, (torch.arange(5) < 3).expand(4, 5) / 3.0, check_dtype=False)


def test_a_uniform_gate_weighs_all_routed_experts_alike_and_has_no_weights():
    adapter, gates = trained(gate="uniform"), []
    run(adapter, *batch(), MIXED, gates)
    want = MIXED / MIXED.sum(1, keepdim=True).clamp(min=1)
    for weight in gates:
        torch.testing.assert_close(weight, want.double(), atol=1e-7, rtol=0)
    assert not [name for name, _ in adapter.named_parameters() if ".gate." in name]


def test_features_of_experts_that_are_not_routed_change_no_bit():
    adapter, (base, features, text) = trained(torch.float32).eval(), batch(dtype=torch.float32)
    before = run(adapter, base, features, text, MIXED)
    other = {name: x.clone() for name, x in features.items()}
    for e, x in enumerate(other.values()):
        x[MIXED[:, e] == 0] = torch.nan
    assert torch.equal(run(adapter, base, other, text, MIXED), before)
    other["b"][1] += 1.0
    after = run(adapter, base, other, text, MIXED)
    assert (after != before).flatten(1).any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("is_training", [False, True])
def test_leaving_experts_out_equals_running_all_and_masking(is_training):
    adapter, (base, features, text) = trained().train(is_training), batch()
    cotangent = torch.randn(4, adapter.num_tokens, WIDTH, dtype=torch.float64)
    found = []
    for way in (run, all_run_and_masked):
        leaves = [base.clone().requires_grad_(), text.clone().requires_grad_()]
        experts = {name: x.clone().requires_grad_() for name, x in features.items()}
        adapter.zero_grad()
        tokens = way(adapter, leaves[0], experts, leaves[1], MIXED)
        (tokens * cotangent).sum().backward()
        given = (*leaves, *experts.values(), *adapter.parameters())
        found.append([tokens, *(torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_a_mixed_batch_equals_one_image_after_the_other():
    adapter, (base, features, text) = trained().eval(), batch()
    together = run(adapter, base, features, text, MIXED)
    for i in range(4):
        one = slice(i, i + 1)
        alone = run(adapter, base[one], {n: x[one] for n, x in features.items()}, text[one], MIXED[one])
        torch.testing.assert_close(alone[0], together[i], atol=1e-12, rtol=1e-12)


def calls_of(adapter):
    """Returns a list that the rows of each cross-attention of the first block are noted in."""
    calls = []
    for name, reader in adapter.blocks[0].readers.items():
        reader.register_forward_hook(lambda _, given, __, name=name: calls.append((name, *given[0].shape[:2])))
    return calls


def test_each_expert_runs_once_on_exactly_its_images():
    adapter = trained().eval()
    calls = calls_of(adapter)
    run(adapter, *batch(), MIXED)
    assert calls == [("a", 2, 24), ("b", 3, 24), ("d", 2, 24), ("e", 1, 24)]


def test_in_training_weights_of_an_expert_nobody_has_get_a_gradient_of_zero_on_one_position():
    adapter, given = trained().train(), batch()
    routing = MIXED.clone()
    routing[3, 0] = 0  # three are left, so that none of them is the fourth, whose weight is zero
    calls = calls_of(adapter)
    tokens = run(adapter, *given, routing)
    assert ("c", 1, 1) in calls
    assert torch.equal(tokens, run(adapter.eval(), *given, routing))
    tokens.sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (".readers.c." not in name), name


def test_in_training_every_weight_takes_part_in_a_batch_without_experts():
    adapter = trained().train()
    run(adapter, *batch(), torch.zeros_like(MIXED)).sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (".readers." not in name and ".gate." not in name), name


def test_turned_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    rows, columns = 5, 7
    rotary = GridRotary((rows, columns)).double()
    query, key = (torch.randn(1, 1, 1, 64, dtype=torch.float64).expand(1, 1, 35, 64) for _ in range(2))
    score = (rotary(query) @ rotary(key).transpose(-2, -1)).view(rows, columns, rows, columns)
    by_distance = {}
    for r1, c1, r2, c2 in itertools.product(range(rows), range(columns), range(rows), range(columns)):
        by_distance.setdefault((r1 - r2, c1 - c2), []).append(score[r1, c1, r2, c2])
    for scores in by_distance.values():
        assert torch.stack(scores).std(correction=0) < 1e-5
    by_row = torch.stack([by_distance[r, 0][0] for r in range(1 - rows, rows)])
    by_column = torch.stack([by_distance[0, c][0] for c in range(1 - columns, columns)])
    for scores in (by_row, by_column):
        assert torch.pdist(scores[:, None]).min() > 1e-3


def test_numbers_of_weights_are_those_of_the_released_adapter():
    with torch.device("meta"):
        grids = dict.fromkeys(RELEASED, (37, 37))
        adapter = MoVAdapter(MoVAdapterSpec(), 1024, (48, 48), RELEASED, grids, 1024, 4096)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert [count(block) for block in adapter.blocks] == [40_966_831] * 3
    assert count(adapter.blocks[0].gate) == 2_105_351
    assert count(adapter.downsample) == 5_276_160
    assert count(adapter.projector) == 20_979_712
    assert count(adapter) == 151_515_661


def test_numbers_of_tokens_from_the_grid_to_the_glance():
    with torch.device("meta"):
        adapter = MoVAdapter(MoVAdapterSpec(layers=1), 64, (48, 48), CHANNELS, GRIDS, TEXT, WIDTH)
        tokens = adapter(torch.empty(2, 2304, 64), {}, torch.zeros(2, 5), torch.empty(2, TEXT))
    assert tokens.shape == (2, adapter.num_tokens, WIDTH) == (2, 576, WIDTH)
    assert glance(tokens, adapter.token_grid, 144).shape == (2, 144, WIDTH)
    small = trained(token_grid=(3, 4))
    assert run(small, *batch(), MIXED).shape == (4, 12, WIDTH)


def test_nothing_asks_a_device_for_a_value():
    """A meta tensor has none, so whatever would wait for a GPU fails."""
    with torch.device("meta"):
        adapter = MoVAdapter(MoVAdapterSpec(), BASE, GRID, CHANNELS, GRIDS, TEXT, WIDTH).train()
        experts = {"a": torch.empty(1, 24, 24), "d": torch.empty(3, 4, 20)}
        tokens = adapter(torch.empty(3, 24, BASE), experts, torch.empty(3, 5), torch.empty(3, TEXT))
        tokens.sum().backward()
    assert tokens.shape == (3, 6, WIDTH)


def test_a_glance_is_the_mean_of_neighbours():
    tokens = torch.arange(24.0).view(1, 24, 1)
    cells = tokens.view(2, 2, 2, 3).permute(0, 2, 1, 3).reshape(4, 6)
    assert torch.equal(glance(tokens, GRID, 4)[0, :, 0], cells.mean(1))


@pytest.mark.parametrize("number", [0, 10])
def test_a_glance_that_is_no_square_is_refused(number):
    with pytest.raises(ValueError, match=f"routing_tokens is {number}, no square"):
        glance(torch.zeros(1, 24, 3), GRID, number)


def test_bf16_is_as_near_as_running_all_and_masking_in_bf16():
    (base, features, text), half = batch(), torch.bfloat16
    want = run(trained().eval(), base, features, text, MIXED)
    rounded = trained().eval().to(half)
    given = base.to(half), {name: x.to(half) for name, x in features.items()}, text.to(half)
    found, reference = (way(rounded, *given, MIXED.to(half)) for way in (run, all_run_and_masked))
    assert found.dtype == half
    error, reference_error = ((tokens.double() - want).norm() / want.norm() for tokens in (found, reference))
    assert error < 1.2 * reference_error < 0.1
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rounded.parameters())


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    grids = {"a": (2, 2), "b": (1, 3)}
    adapter = MoVAdapter(MoVAdapterSpec(layers=1), 64, (2, 2), {"a": 3, "b": 2}, grids, 4, 3).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    routing = torch.tensor([[1, 1], [0, 1], [0, 0]])
    shapes = [(3, 4, 64), (1, 4, 3), (2, 3, 2), (3, 4)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    names = ["position_1PC", "blocks.0.gate.layers.2.weight", "blocks.0.readers.a.attention.k_proj.weight"]
    weights = [dict(adapter.named_parameters())[name] for name in names]

    def tokens(base, a, b, text, *leaves):
        state = dict(zip(names, leaves, strict=True))
        return torch.func.functional_call(adapter, state, (base, {"a": a, "b": b}, routing, text))

    assert torch.autograd.gradcheck(tokens, (*given, *weights), fast_mode=True)


def test_maps_are_resized_by_row_and_column():
    ramp = torch.arange(3.0)[:, None] * 10 + torch.arange(5.0)
    resized = on_grid(ramp.view(1, 15, 1), (3, 5), GRID).view(GRID)
    want = F.interpolate(ramp[None, None], size=GRID, mode="bilinear")[0, 0]
    assert torch.equal(resized, want)
    same = torch.randn(1, 24, 3, dtype=torch.bfloat16)
    assert torch.equal(on_grid(same, GRID, GRID), same)


def test_places_are_those_of_the_images_in_order():
    routing = torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1]])
    placed = place({"x": torch.zeros(2, 1, 1), "y": torch.zeros(4, 1, 1)}, ("x", "y"), routing)
    assert placed["x"].image_I.tolist() == [1, 3]
    assert placed["y"].image_I is None
    rows = torch.zeros(4, 1, 1)
    RoutedMap(rows[:2], placed["x"].image_I).add_(rows, torch.tensor([5.0, 7.0]).view(2, 1, 1))
    assert rows.flatten().tolist() == [0, 5, 0, 7]


def test_features_that_do_not_fit_the_routing_are_refused():
    adapter, (base, features, text) = fresh(), batch()
    with pytest.raises(ValueError, match=r"unknown experts \['z'\]"):
        adapter(base, {"z": features["a"]}, MIXED, text)
    fewer = compact(features, MIXED) | {"b": features["b"][:2]}
    with pytest.raises(ValueError, match=r"'b': 3.*'b': 2"):
        adapter(base, fewer, MIXED, text)
    with pytest.raises(ValueError, match=r"'d': 2.*'d': 0"):
        adapter(base, {n: x for n, x in compact(features, MIXED).items() if n != "d"}, MIXED, text)


def test_base_channels_that_make_no_whole_heads_are_refused():
    with pytest.raises(ValueError, match="has 96 channels, but a head of the MoV-Adapter takes 64"):
        MoVAdapter(MoVAdapterSpec(), 96, GRID, CHANNELS, GRIDS, TEXT, WIDTH)


def test_a_released_model_gives_its_adapter_without_text_encoder_and_rotary_tables():
    names = [
        "pos_embed", "blocks.0.cross_attn.1.proj.bias", "blocks.0.cross_attn.1.rope.freqs_cos",
        "blocks.2.mlp.w3.weight",
        "text_encoder.bert.pooler.dense.bias", "mlp.2.weight", "blocks.1.norm2.0.bias", "blocks.1.gate.2.bias",
    ]  # fmt: skip
    state = {f"model.mm_projector.{name}": torch.zeros(1) for name in names} | {"lm_head.weight": torch.zeros(1)}
    found = from_released(state, ["p", "q"])
    assert set(found) == {
        "position_1PC", "blocks.0.readers.q.attention.out_proj.bias", "blocks.2.mlp.down_proj.weight",
        "projector.layers.2.weight", "blocks.1.readers.p.map_norm.bias", "blocks.1.gate.layers.2.bias",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"expert number 1, but the declared experts are \['p'\]"):
        from_released(state, ["p"])
    with pytest.raises(ValueError, match="no MoV-Adapter among these weights"):
        from_released({"lm_head.weight": torch.zeros(1)}, ["p"])
