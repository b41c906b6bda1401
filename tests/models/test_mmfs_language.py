"""Images seen by a language model's layers: nothing at first, nothing of later ones, the same by any way of running."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmmoe.models.mmfs.language import SynchronisedLayer, add_synchroniser
from mmmoe.models.mmfs.spec import SynchroniserSpec
from mmmoe.models.recompute import recompute_layers

SIDES, CHANNELS, WIDTH = (4, 2), 8, 32
CELLS = sum(side * side for side in SIDES)
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SPEC = SynchroniserSpec(every=2, heads=4, points=3, base_side=4, max_images=3)


def language_model(kind="llama"):
    torch.manual_seed(0)
    config, model = MODELS[kind]
    return model(config(**SIZES)).eval()


def seeing(kind="llama", gate=0.7):
    """Returns a language model that looks at images, its gates open and its vectors for nothing not zero."""
    language = language_model(kind)
    memory = add_synchroniser(language, SPEC, CHANNELS, SIDES)
    for layer in synchronised(language):
        torch.nn.init.constant_(layer.gate, gate)
        torch.nn.init.normal_(layer.attn.output_proj.bias)
        torch.nn.init.normal_(layer.attn.sampling_offsets.weight)
    return language.eval(), memory


def synchronised(language):
    return [layer for layer in language.model.layers if isinstance(layer, SynchronisedLayer)]


def hidden(language, embeddings):
    positions = torch.arange(embeddings.shape[1])[None].expand(len(embeddings), -1)
    result = language.model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    return result.last_hidden_state


def batch(rows=2, length=9, images=2, seed=1):
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, length, WIDTH, generator=rng)
    return embeddings, torch.randn(rows, images, CELLS, CHANNELS, generator=rng)


FIRST = torch.tensor([[2, 5], [4, -1]])


def test_it_stands_in_every_nth_layer():
    language, _ = seeing()
    assert [isinstance(layer, SynchronisedLayer) for layer in language.model.layers] == [True, False, True]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("is_shown", [True, False])
def test_a_fresh_one_changes_no_bit(kind, is_shown):
    embeddings, maps = batch()
    language = language_model(kind)
    want = hidden(language, embeddings)
    memory = add_synchroniser(language, SPEC, CHANNELS, SIDES)
    if is_shown:
        memory.show(maps, SIDES, FIRST)
    assert torch.equal(hidden(language, embeddings), want)


@pytest.mark.parametrize("kind", MODELS)
def test_an_image_matters_from_its_first_token_on(kind):
    language, memory = seeing(kind)
    embeddings, maps = batch()
    memory.show(maps, SIDES, FIRST)
    before = hidden(language, embeddings)
    other = maps.clone()
    other[0, 1] += 1.0
    memory.show(other, SIDES, FIRST)
    is_same_BT = (hidden(language, embeddings) == before).all(-1)
    assert torch.equal(is_same_BT, torch.tensor([[True] * 5 + [False] * 4, [True] * 9]))


def test_an_image_that_fills_up_is_not_seen():
    language, memory = seeing()
    embeddings, maps = batch()
    memory.show(maps, SIDES, FIRST)
    before = hidden(language, embeddings)
    maps[1, 1] = 99.0
    memory.show(maps, SIDES, FIRST)
    assert torch.equal(hidden(language, embeddings), before)


def test_a_row_does_not_depend_on_the_others():
    language, memory = seeing()
    embeddings, maps = batch(rows=3)
    first = torch.tensor([[2, 5], [4, -1], [-1, -1]])
    memory.show(maps, SIDES, first)
    whole = hidden(language, embeddings)
    for row in range(2):
        images = int((first[row] >= 0).sum())
        memory.show(maps[row : row + 1, :images], SIDES, first[row : row + 1, :images])
        torch.testing.assert_close(hidden(language, embeddings[row : row + 1]), whole[row : row + 1])
    memory.forget()
    torch.testing.assert_close(hidden(language, embeddings[2:]), whole[2:])


@pytest.mark.parametrize("kind", MODELS)
def test_token_by_token_equals_the_whole(kind):
    language, memory = seeing(kind)
    embeddings, maps = batch()
    memory.show(maps, SIDES, FIRST)
    whole = hidden(language, embeddings)
    cache, found = None, []
    with torch.no_grad():
        for start, end in [(0, 4), *((t, t + 1) for t in range(4, 9))]:
            result = language.model(
                inputs_embeds=embeddings[:, start:end],
                position_ids=torch.arange(start, end)[None].expand(2, -1),
                past_key_values=cache,
                use_cache=True,
            )
            cache = result.past_key_values
            found.append(result.last_hidden_state)
    torch.testing.assert_close(torch.cat(found, 1), whole)


def test_maps_are_projected_once_an_answer(monkeypatch):
    language, memory = seeing()
    embeddings, maps = batch()
    layer = synchronised(language)[0]
    calls = []
    values = layer.attn.values
    monkeypatch.setattr(layer.attn, "values", lambda maps: calls.append(1) or values(maps))
    memory.show(maps, SIDES, FIRST)
    with torch.no_grad():
        cache = None
        for t in range(3):
            cache = language.model(
                inputs_embeds=embeddings[:, t : t + 1],
                position_ids=torch.full((2, 1), t),
                past_key_values=cache,
                use_cache=True,
            ).past_key_values
        assert len(calls) == 1
        memory.show(maps + 1, SIDES, FIRST)
        language.model(inputs_embeds=embeddings, use_cache=True)
    assert len(calls) == 2
    hidden(language, embeddings)
    hidden(language, embeddings)
    assert len(calls) == 4  # in training the weights change


def test_rows_that_stand_there_several_times():
    language, memory = seeing()
    embeddings, maps = batch()
    memory.show(maps, SIDES, FIRST)
    want = hidden(language, embeddings)
    found = hidden(language, embeddings.repeat_interleave(3, dim=0))
    torch.testing.assert_close(found, want.repeat_interleave(3, dim=0))
    with pytest.raises(RuntimeError, match="3 rows, but was shown the images of 2"):
        hidden(language, embeddings[:1].expand(3, -1, -1))


@pytest.mark.parametrize("is_shown", [True, False])
def test_every_weight_gets_a_gradient(is_shown):
    language, memory = seeing()
    embeddings, maps = batch()
    if is_shown:
        memory.show(maps, SIDES, FIRST)
    hidden(language.train(), embeddings).pow(2).sum().backward()
    for layer in synchronised(language):
        without = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
        assert without == []
        assert layer.gate.grad.abs() > 0


def gradients(language, embeddings, maps, between=lambda: None):
    language.zero_grad()
    maps.grad = None
    y = hidden(language, embeddings)
    between()
    y.pow(2).sum().backward()
    return [maps.grad.clone(), *(p.grad.clone() for p in language.model.parameters() if p.grad is not None)]


def test_recomputed_layers_give_the_same_gradients_whatever_is_shown_meanwhile():
    language, memory = seeing()
    language.train()
    embeddings, maps = batch()
    maps.requires_grad_()
    memory.show(maps, SIDES, FIRST)
    want = gradients(language, embeddings, maps)
    recompute_layers(language, True)
    memory.show(maps, SIDES, FIRST)
    found = gradients(language, embeddings, maps, between=memory.forget)
    assert len(found) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_frozen_model_in_half_type_beside_weights_in_full():
    language, memory = seeing()
    for layer in language.model.layers:
        getattr(layer, "base", layer).bfloat16()
    language.model.norm.bfloat16()
    embeddings, maps = batch()
    memory.show(maps, SIDES, FIRST)
    y = hidden(language, embeddings.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().pow(2).sum().backward()
    assert all(p.grad is not None for layer in synchronised(language) for p in layer.attn.parameters())


def test_more_images_than_its_table_has_rows_for():
    language, memory = seeing()
    embeddings, maps = batch(images=4)
    memory.show(maps, SIDES, torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]))
    with pytest.raises(ValueError, match="has 4 images, the synchroniser's table is for 3; raise max_images"):
        hidden(language, embeddings)


def test_maps_that_do_not_fit():
    _, memory = seeing()
    _, maps = batch()
    with pytest.raises(ValueError, match="20 cells of maps with the sides 4, 2"):
        memory.show(maps[:, :, 1:], SIDES, FIRST)
    with pytest.raises(ValueError, match=r"do not fit first \(1, 2\)"):
        memory.show(maps, SIDES, FIRST[:1])


def test_layers_of_another_kind_are_refused():
    gemma = Gemma2ForCausalLM(Gemma2Config(**SIZES))
    with pytest.raises(ValueError, match="has Gemma2DecoderLayer"):
        add_synchroniser(gemma, SPEC, CHANNELS, SIDES)


def test_heads_that_do_not_divide_what_is_read():
    with pytest.raises(ValueError, match="8 channels with 3 heads"):
        add_synchroniser(language_model(), SynchroniserSpec(heads=3), CHANNELS, SIDES)


def test_the_released_sizes():
    """The counts of the sheet: 36,303,537 a layer, ten of Vicuna-13B's forty; the ignored vector is a buffer here."""
    with torch.device("meta"):
        config = LlamaConfig(
            hidden_size=5120, intermediate_size=64, num_attention_heads=40, num_hidden_layers=40, vocab_size=8
        )
        language = LlamaForCausalLM(config)
        add_synchroniser(language, SynchroniserSpec(), 1024, (128, 64, 32))
    layers = synchronised(language)
    assert len(layers) == 10
    own = sum(p.numel() for name, p in layers[0].named_parameters() if not name.startswith("base."))
    assert own + layers[0].attn.ignore_token.numel() == 36_303_537
