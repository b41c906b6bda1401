"""The image decoder: what it learns from, what it draws, and that nothing of one image reaches another."""

from __future__ import annotations

import image_decoder_toy as toy
import pytest
import torch

from mmmoe.engine.groups import freeze
from mmmoe.engine.precision import cast_parameters
from mmmoe.models.image_decoder.context import PreviousMaps
from mmmoe.models.image_decoder.sampling import PREDICTIONS, SCHEDULE, sampler_of, samplers, trial

SPECS = {"cells": toy.spec_of, "vae": toy.vae_spec, "plain": lambda: toy.spec_of(glyphs=None, synchroniser=None)}


def chosen(inputs, index):
    hidden, mask, pixels, previous, glyph = inputs
    place = torch.tensor([index])
    return hidden[place], mask[place], pixels[place], one_of(previous, place), glyph[place]


def one_of(previous, place):
    return None if previous is None else PreviousMaps([level[place] for level in previous.maps], previous.mask_I[place])


def seeded_loss(decoder, *inputs):
    torch.manual_seed(5)
    return decoder.loss(*inputs)


def draw(decoder, inputs, **options):
    hidden, mask, _, previous, glyph = inputs
    return decoder.draw(hidden, mask, previous, glyph, **{"seeds": list(range(len(hidden))), **options})


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("images", [3, 0])
def test_every_trained_weight_gets_a_gradient(spec, images):
    decoder = toy.decoder_of(spec())
    loss = seeded_loss(decoder, *toy.inputs_of(images))
    assert loss.shape == (images,)
    assert loss.dtype == torch.float32
    (loss.sum() * 1.0).backward()
    lost = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
    assert lost == []
    if images == 0:
        assert not any(parameter.grad.any() for parameter in decoder.parameters())


@pytest.mark.parametrize("blind", [0.0, 1.0])
def test_every_trained_weight_gets_a_gradient_without_letters_or_images_before(blind):
    decoder = toy.decoder_of(toy.spec_of(unconditional=blind))
    hidden, mask, pixels, _, _ = toy.inputs_of()
    seeded_loss(decoder, hidden, mask, pixels).sum().backward()
    assert [name for name, parameter in decoder.named_parameters() if parameter.grad is None] == []


def test_an_image_with_no_more_than_two_positions_of_context_costs_nothing():
    decoder = toy.decoder_of(toy.spec_of())
    hidden, mask, pixels, previous, glyph = toy.inputs_of()
    mask[1, 2:] = False
    loss = seeded_loss(decoder, hidden, mask, pixels, previous, glyph)
    assert loss[1] == 0
    assert (loss[[0, 2]] > 0).all()


def test_the_loss_is_the_mean_error_of_what_is_predicted():
    """Against the definition, step by step, for each kind of prediction."""
    for kind in ("sample", "v_prediction", "epsilon"):
        scheduler = {"prediction_type": kind, "num_train_timesteps": 30}
        decoder = toy.decoder_of(toy.spec_of(scheduler=scheduler, unconditional=0.0, glyphs=None, synchroniser=None))
        hidden, mask, pixels, _, _ = toy.inputs_of()
        got = seeded_loss(decoder, hidden, mask, pixels)
        torch.manual_seed(5)
        clean = torch.nn.functional.pixel_unshuffle(pixels, 2)
        noise, step = torch.randn_like(clean), torch.randint(30, (3,))
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 30), 0)[step][:, None, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        wanted = {
            "sample": clean, "epsilon": noise, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean
        }[kind]  # fmt: skip
        context = decoder.perceiver(decoder.context(hidden), mask)
        predicted = decoder.unet(noisy, step, context).sample
        torch.testing.assert_close(got, ((predicted - wanted) ** 2).mean((1, 2, 3)))


def test_blind_images_learn_from_nothing_but_the_learned_embedding():
    decoder = toy.decoder_of(toy.spec_of(unconditional=1.0))
    inputs = toy.inputs_of()
    loss = seeded_loss(decoder, *inputs)
    other = toy.inputs_of(seed=2)
    hidden, glyph = other[0], inputs[4].flip(0)
    torch.testing.assert_close(seeded_loss(decoder, hidden, *inputs[1:4], glyph), loss)
    loss.sum().backward()
    assert decoder.empty.tokens_1QC.grad.any()
    assert not decoder.context.projection.weight.grad.any()
    assert not decoder.glyphs.cell.weight.grad.any()
    sighted = toy.decoder_of(toy.spec_of(unconditional=0.0))
    seeded_loss(sighted, *inputs).sum().backward()
    assert not sighted.empty.tokens_1QC.grad.any()
    assert sighted.context.projection.weight.grad.any()


def test_about_the_declared_share_is_blind():
    decoder = toy.decoder_of(toy.spec_of(unconditional=0.25))
    seen = []
    told = decoder._condition
    decoder._condition = lambda *arguments: seen.append(arguments[3]) or told(*arguments)
    hidden, mask, pixels, previous, glyph = toy.inputs_of(60)
    for seed in range(8):
        torch.manual_seed(seed)
        with torch.no_grad():
            decoder.loss(hidden, mask, pixels, previous, glyph)
    assert 0.18 < torch.cat(seen).float().mean() < 0.32  # 480 draws: three standard deviations on each side


def test_images_do_not_mix():
    decoder = toy.decoder_of(toy.spec_of(unconditional=0.0))
    inputs = toy.inputs_of()
    for tensor in (inputs[0], *inputs[3].maps):
        tensor.requires_grad_()
    seeded_loss(decoder, *inputs)[0].backward()
    for tensor in (inputs[0], *inputs[3].maps):
        assert tensor.grad[0].any()
        assert not tensor.grad[1:].any()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_drawing_together_is_drawing_one_by_one(spec):
    decoder, inputs = toy.decoder_of(spec()), toy.inputs_of()
    together = draw(decoder, inputs)
    assert together.shape == (3, 3, toy.HEIGHT, toy.COLUMNS)
    assert (together.min(), together.max()) >= (0, 0)
    assert together.max() <= 1
    single = [draw(decoder, chosen(inputs, number), seeds=[number]) for number in range(3)]
    torch.testing.assert_close(torch.cat(single), together, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(draw(decoder, inputs, seeds=[7, 8, 9]), together, atol=1e-3)


VELOCITY = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
ZERO_SNR = {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("more", [{}, ZERO_SNR], ids=["usual", "zero"])
def test_every_listed_sampler_draws_what_a_perfect_network_says(kind, more):
    fields = {"prediction_type": kind, "clip_sample": False} | (more if kind != "epsilon" else {})
    names = samplers(fields)
    assert "DDIMScheduler" in names
    assert "EDMEulerScheduler" not in names
    assert len(names) >= (2 if "rescale_betas_zero_snr" in fields else 5)
    for name in names:
        assert (trial(name, fields) - 0.3).abs().mean() < 0.05, name
        config = sampler_of(name, fields).config
        assert all(config[key] == value for key, value in fields.items() if key in SCHEDULE), name


def test_a_sampler_has_the_betas_of_training_where_none_are_declared():
    assert sampler_of("HeunDiscreteScheduler", {}).config.beta_start == 1e-4  # its own would be 8.5e-4


@pytest.mark.parametrize("name", samplers(VELOCITY))
def test_any_sampler_of_diffusers_draws_and_depends_on_seeds_alone(name):
    decoder, inputs = toy.decoder_of(toy.spec_of(sampler=name, scheduler=VELOCITY)), toy.inputs_of()
    first = draw(decoder, inputs, steps=5, guidance=1.0)
    torch.manual_seed(123)
    assert torch.equal(draw(decoder, inputs, steps=5, guidance=1.0), first)
    single = draw(decoder, chosen(inputs, 1), seeds=[1], steps=5, guidance=1.0)
    torch.testing.assert_close(single[0], first[1], atol=1e-4, rtol=1e-3)
    assert first.isfinite().all()


def test_guidance_one_is_the_conditional_prediction_alone():
    decoder, inputs = toy.decoder_of(toy.spec_of()), toy.inputs_of()
    told = draw(decoder, inputs, guidance=1.0)
    near = draw(decoder, inputs, guidance=1.0 + 1e-6)
    torch.testing.assert_close(near, told, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        decoder.empty.tokens_1QC.add_(1.0)
    assert torch.equal(draw(decoder, inputs, guidance=1.0), told)
    assert not torch.allclose(draw(decoder, inputs, guidance=3.0), told, atol=1e-3)
    nothing = draw(decoder, inputs, guidance=0.0)
    other = toy.inputs_of(seed=9)
    torch.testing.assert_close(draw(decoder, (other[0], *inputs[1:4], other[4].flip(0)), guidance=0.0), nothing)


def test_drawing_needs_a_seed_an_image_and_leaves_the_mode_alone():
    decoder, inputs = toy.decoder_of(toy.spec_of()).train(), toy.inputs_of()
    with pytest.raises(ValueError, match="3 images are to be drawn with 2 seeds"):
        draw(decoder, inputs, seeds=[1, 2])
    draw(decoder, inputs)
    assert decoder.training
    assert draw(decoder, toy.inputs_of(0)).shape == (0, 3, toy.HEIGHT, toy.COLUMNS)


def test_recomputing_changes_nothing():
    decoder, inputs = toy.decoder_of(toy.spec_of()).train(), toy.inputs_of()
    seeded_loss(decoder, *inputs).sum().backward()
    plain = [parameter.grad.clone() for parameter in decoder.parameters()]
    decoder.zero_grad()
    decoder.gradient_checkpointing(True)
    seeded_loss(decoder, *inputs).sum().backward()
    for parameter, want in zip(decoder.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, want)
    decoder.gradient_checkpointing(False)
    assert not any(getattr(module, "gradient_checkpointing", None) is True for module in decoder.modules())


@pytest.mark.parametrize("spec", [toy.spec_of, toy.vae_spec])
def test_bfloat16_is_near_float32(spec):
    inputs = toy.inputs_of()
    want = seeded_loss(toy.decoder_of(spec()), *inputs)
    decoder = toy.decoder_of(spec())
    cast_parameters(decoder, torch.bfloat16)
    hidden, mask, pixels, previous, glyph = inputs
    previous = type(previous)([level.bfloat16() for level in previous.maps], previous.mask_I)
    got = seeded_loss(decoder, hidden.bfloat16(), mask, pixels.bfloat16(), previous, glyph)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0.05, rtol=0.05)
    assert draw(decoder, (hidden.bfloat16(), mask, pixels, previous, glyph)).isfinite().all()


def test_a_few_steps_lower_the_loss_and_the_vae_stays():
    decoder = toy.decoder_of(toy.vae_spec(unconditional=0.1), stir=False)
    rows = freeze(decoder, ["*"])
    assert not any("vae" in name for row in rows for name in row.names)
    before = {name: tensor.clone() for name, tensor in decoder.canvas.vae.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in decoder.canvas.vae.parameters())
    inputs = toy.inputs_of(6)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)

    def mean_loss():
        torch.manual_seed(11)
        with torch.no_grad():
            return sum(decoder.loss(*inputs).mean().item() for _ in range(8)) / 8

    first = mean_loss()
    for step in range(40):
        torch.manual_seed(step)
        loss = decoder.loss(*inputs).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean_loss() < 0.7 * first
    for name, tensor in decoder.canvas.vae.state_dict().items():
        assert torch.equal(tensor, before[name])
