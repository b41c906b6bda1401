"""Where the image decoder's networks come from, its canvas and its letters."""

from __future__ import annotations

import json
import shutil

import image_decoder_toy as toy
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from mmmoe.models.image_decoder.canvas import Canvas
from mmmoe.models.image_decoder.context import places_in_context, reversed_context
from mmmoe.models.image_decoder.decoder import ImageDecoder
from mmmoe.models.image_decoder.glyphs import GlyphCells
from mmmoe.models.image_decoder.layout import (
    build_unet,
    build_vae,
    empty_prompt,
    layout_files,
    layout_problems,
    scheduler_fields,
)
from mmmoe.models.image_decoder.sampling import noise_schedule, sampler_of
from mmmoe.models.image_decoder.spec import GlyphSpec, ImageDecoderSpec
from mmmoe.models.weights import base_fingerprint, weight_files, weight_problems

UNET_2 = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "sample_size": 64,
}  # fmt: skip
VAE_2 = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "sample_size": 768,
}  # fmt: skip


@pytest.fixture
def layout(tmp_path):
    toy.save_layout(tmp_path)
    return tmp_path


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_of_stable_diffusion_2():
    with torch.device("meta"):
        decoder = ImageDecoder(ImageDecoderSpec(unet=UNET_2, vae=VAE_2), 5120, 1024, (64, 32, 16, 8), meta=True)
    assert count(decoder.unet) == 865_910_724
    assert decoder.canvas.num_constants == 83_653_863
    assert decoder.canvas.grid == (64, 64)
    assert decoder.empty.tokens_1QC.shape == (1, 77, 1024)


def test_a_layout_of_diffusers_is_loaded(layout):
    unet, vae = toy.save_layout(layout)
    spec = toy.layout_spec(layout)
    assert list(layout_problems(spec)) == []
    assert [file.parent.name for file in layout_files(spec)] == ["unet", "vae"]
    decoder = toy.decoder_of(spec, stir=False)
    assert decoder.schedule.config.prediction_type == "v_prediction"
    assert decoder.schedule.config.num_train_timesteps == 40
    sample, context = torch.randn(2, 2, 4, 12), torch.randn(2, 5, 16)
    letters = torch.randn(2, toy.GLYPHS.channels, 4, 12)
    with torch.no_grad():
        want = unet.eval()(sample, torch.tensor([3, 7]), context).sample
        got = decoder._predict(sample, torch.tensor([3, 7]), context, letters, None)
        torch.testing.assert_close(got, want)  # letters come in with weights of zero
        pixels = torch.rand(2, 3, toy.HEIGHT, toy.COLUMNS) * 2 - 1
        moments = vae.eval().encode(pixels).latent_dist.parameters
        torch.testing.assert_close(decoder.canvas(pixels).transpose(1, 2).unflatten(2, (4, 12)), moments)
        want = vae.decode(moments[:, :2]).sample / 2 + 0.5
        torch.testing.assert_close(decoder.canvas.pixels(moments[:, :2] * 0.5), want.clamp(0, 1))


def test_a_layout_may_be_declared_too_and_is_compared(layout):
    spec = toy.layout_spec(layout, unet=toy.unet_fields(2), vae=toy.VAE)
    assert list(layout_problems(spec)) == []
    toy.decoder_of(spec)
    other = toy.layout_spec(layout, unet={**toy.unet_fields(2), "layers_per_block": 2})
    assert [line.partition(":")[0] for line in layout_problems(other)] == ["unet"]
    with pytest.raises(ValueError, match=r"image_decoder\.unet: .*layers_per_block: declared 2, found 1"):
        build_unet(other, 2)


def test_what_is_missing_is_said(layout, tmp_path_factory):
    spec = toy.layout_spec(layout)
    (layout / "scheduler" / "scheduler_config.json").unlink()
    assert [line for line in layout_problems(spec) if "scheduler_config.json" in line]
    with pytest.raises(ValueError, match=r"there is no .*scheduler_config\.json"):
        toy.decoder_of(spec)
    toy.save_layout(layout)
    (layout / "vae" / "config.json").unlink()
    assert [line for line in layout_problems(spec) if "vae holds no network" in line]
    with pytest.raises(ValueError, match=r"there is no .*vae/config\.json"):
        toy.decoder_of(spec)
    nowhere = toy.layout_spec(layout / "nowhere")
    assert list(layout_problems(nowhere)) == [
        f"path: no folder {layout / 'nowhere'}; put a Stable Diffusion layout there (unet/, vae/, scheduler/)"
    ]
    with pytest.raises(ValueError, match="there is no"):
        toy.decoder_of(nowhere)


def test_a_part_of_a_model_says_what_its_files_are(layout):
    spec = toy.layout_spec(layout)
    assert list(weight_problems(spec)) == []
    assert weight_files(spec) == layout_files(spec)
    before = base_fingerprint(spec)
    assert before
    toy.save_layout(layout, seed=4)
    assert base_fingerprint(spec) != before
    assert weight_files(toy.vae_spec()) == []
    assert base_fingerprint(toy.vae_spec()) == ""
    (layout / "unet" / "config.json").unlink()
    assert [line for line in weight_problems(spec) if "unet holds no network" in line]


def test_a_pickle_is_never_read(layout):
    weights = layout / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    spec = toy.layout_spec(layout)
    assert [line for line in layout_problems(spec) if "is a pickle" in line]
    with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model\.safetensors.*pickle"):
        toy.decoder_of(spec)


def test_variants_beside_the_weights_are_left_alone(layout):
    weights = layout / "unet" / "diffusion_pytorch_model.safetensors"
    want = build_unet(toy.layout_spec(layout), 2).state_dict()
    save_file({}, layout / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    got = build_unet(toy.layout_spec(layout), 2).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    weights.rename(layout / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    assert [line for line in layout_problems(toy.layout_spec(layout)) if "has no diffusion_pytorch_model" in line]


def test_weights_in_several_files_are_loaded(layout):
    whole = build_unet(toy.layout_spec(layout), 2)
    shutil.rmtree(layout / "unet")
    whole.save_pretrained(layout / "unet", max_shard_size="20KB")
    spec = toy.layout_spec(layout)
    assert len(layout_files(spec)) > 2
    assert list(layout_problems(spec)) == []
    got = build_unet(spec, 2).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.state_dict().items())


def test_names_of_old_layouts_are_understood(layout):
    """The VAE of Stable Diffusion 2 has its attention under names that diffusers has given up."""
    spec = toy.layout_spec(layout)
    want = build_vae(spec).state_dict()
    weights = layout / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(weights)
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    assert set(tensors) != set(want)
    save_file(tensors, weights, metadata={"format": "pt"})
    (layout / "vae" / "config.json").write_text(json.dumps({**toy.VAE, "field_of_a_later_version": 1}))
    got = build_vae(spec).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_latents_of_a_vae_are_not_clipped_unless_it_is_asked_for(layout):
    assert scheduler_fields(toy.vae_spec())["clip_sample"] is False
    assert scheduler_fields(toy.spec_of())["clip_sample"] is True
    assert scheduler_fields(toy.vae_spec(scheduler={"clip_sample": True}))["clip_sample"] is True
    assert sampler_of("DDIMScheduler", scheduler_fields(toy.vae_spec())).config.clip_sample is False


def test_lost_tensors_are_said(layout):
    weights = layout / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors, the first are \['conv_in\.weight'\]"):
        toy.decoder_of(toy.layout_spec(layout))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"unet": {**toy.unet_fields(), "chanels": 3}}, r"fields that UNet2DConditionModel does not know.*chanels"),
        ({"unet": toy.unet_fields(11)}, "in_channels 11 and out_channels 11, but latents of this canvas have 12"),
        ({"unet": {**toy.unet_fields(), "cross_attention_dim": 24}}, "perceiver.width is 16.*cross_attention_dim 24"),
        ({"unet": {**toy.unet_fields(), "class_embed_type": "timestep"}}, "more than a context.*class_embed_type"),
        ({"unet": {**toy.unet_fields(), "down_block_types": ["DownBlock2D", "X"]}}, r"image_decoder\.unet: "),
        ({"unet": {**toy.unet_fields(), "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}},
         "no block with cross-attention"),
        ({"height": 9}, "canvas of 9 x 24 is no multiple of 2 pixels"),
        ({"glyphs": GlyphSpec(pitch=5)}, "pitch is 5 pixels, but a latent is 2 wide"),
        ({"scheduler": {"beta_shedule": "linear"}}, r"no scheduler of diffusers knows: \['beta_shedule'\]"),
        ({"scheduler": {"beta_schedule": "square"}}, "makes no schedule"),
        ({"scheduler": {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}}, "last step is noise alone"),
        ({"scheduler": {"prediction_type": "flow"}}, r"scheduler\.prediction_type is 'flow'"),
        ({"sampler": "PNDMScheduler", "scheduler": {"prediction_type": "sample"}},
         "'PNDMScheduler' cannot draw with these fields .* take one of .*DDIMScheduler"),
        ({"sampler": "EDMEulerScheduler"}, "'EDMEulerScheduler' knows no beta_start"),
        ({"sampler": "PNDMScheduler", "scheduler": {"prediction_type": "sample", "rescale_betas_zero_snr": True}},
         "'PNDMScheduler' knows no rescale_betas_zero_snr, by which the noise is added"),
        ({"sampler": "DDIMSheduler"}, "sampler 'DDIMSheduler' is none of .*DDIMScheduler"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(changed, words):
    with pytest.raises(ValueError, match=words):
        toy.decoder_of(toy.spec_of(**changed))


def test_what_cannot_be_declared():
    with pytest.raises(ValidationError, match="give a path to a Stable Diffusion layout"):
        ImageDecoderSpec(height=8, width=8)
    with pytest.raises(ValidationError, match="a VAE makes the latents"):
        toy.vae_spec(patch=2)
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler"):
        sampler_of("DPMSolverSDEScheduler", {})
    assert noise_schedule({}, "here").config.num_train_timesteps == 1000


def test_the_embedding_of_nothing_is_that_of_the_empty_prompt_where_a_layout_can_say(layout):
    spec = toy.layout_spec(layout)
    assert empty_prompt(spec) is None
    config = CLIPTextConfig(
        vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=5, bos_token_id=4, eos_token_id=5,
    )  # fmt: skip
    encoder = CLIPTextModel(config).eval()
    encoder.save_pretrained(layout / "text_encoder")
    folder = layout / "tokenizer"
    folder.mkdir()
    vocabulary = {"!": 0, "a": 1, "b": 2, "a</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 5, "pad_token": "!"})
    )
    with torch.no_grad():
        want = encoder(torch.tensor([[4, 5, 0, 0, 0]])).last_hidden_state
    torch.testing.assert_close(empty_prompt(spec), want)
    torch.testing.assert_close(toy.decoder_of(spec, stir=False).empty.tokens_1QC.data, want)


def test_moments_are_the_pixels_through_the_vae():
    decoder = toy.decoder_of(toy.vae_spec())
    hidden, mask, pixels, previous, glyph = toy.inputs_of()
    features = decoder.canvas.encode(pixels)
    assert features.shape == (3, decoder.canvas.num_tokens, decoder.canvas.channels) == (3, 48, 4)
    losses = []
    for canvas in (pixels, features):
        torch.manual_seed(5)
        losses.append(decoder.loss(hidden, mask, canvas, previous, glyph))
    assert torch.equal(*losses)


def test_cells_of_pixels_come_back():
    canvas = Canvas(None, (toy.HEIGHT, toy.COLUMNS), 2)
    pixels = toy.inputs_of()[2]
    latents = canvas.latents(canvas.encode(pixels))
    assert latents.shape == (3, 12, 4, 12)
    torch.testing.assert_close(canvas.pixels(latents), pixels / 2 + 0.5)
    assert torch.equal(canvas.latents(pixels), latents)
    assert canvas.input_shape == (3, toy.HEIGHT, toy.COLUMNS)


def test_the_vae_is_no_part_of_the_tree_but_moves_with_the_model():
    decoder = toy.decoder_of(toy.vae_spec())
    before = {name: tensor.clone() for name, tensor in decoder.canvas.vae.state_dict().items()}
    decoder.bfloat16().half()
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.canvas.vae.state_dict().items())
    assert not any("vae" in name for name, _ in decoder.named_parameters())
    assert not any("vae" in name for name in decoder.state_dict())
    assert {tensor.dtype for tensor in decoder.canvas.vae.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in decoder.to("meta").canvas.vae.parameters()} == {"meta"}
    assert decoder.canvas.num_constants == count(build_vae(toy.vae_spec())) > 0
    assert toy.decoder_of(toy.vae_spec()).canvas.key == toy.decoder_of(toy.vae_spec()).canvas.key
    assert toy.decoder_of(toy.spec_of()).canvas.key != toy.decoder_of(toy.vae_spec()).canvas.key


def test_letters_lie_on_their_cells():
    cells = GlyphCells(GlyphSpec(pitch=4, channels=2), toy.WIDTH, (8, 24), (4, 12))
    hidden = torch.randn(4, 9, toy.WIDTH)
    glyph = torch.tensor([[8, 3, -1, -1, -1, -1, -1], [2] * 7, [-1] * 7, [5, 4, 3, -1, -1, -1, -1]])
    drawn = cells(hidden, glyph)
    assert drawn.shape == (4, 2, 4, 12)
    cell = cells.cell(cells.norm(hidden)).unflatten(2, (2, 4, 2))  # 6 cells of 2 columns fit
    assert torch.equal(drawn[0, :, :, 4:6], cell[0, 8])
    assert torch.equal(drawn[0, :, :, 6:8], cell[0, 3])
    assert not drawn[0, :, :, :4].any()
    assert not drawn[0, :, :, 8:].any()
    for number in range(6):  # the seventh letter has no cell
        assert torch.equal(drawn[1, :, :, 2 * number : 2 * number + 2], cell[1, 2])
    assert not drawn[2].any()
    assert torch.equal(drawn[3, :, :, 3:9], torch.cat([cell[3, 5], cell[3, 4], cell[3, 3]], dim=2))


def test_letters_are_found_in_the_reversed_context():
    hidden = torch.randn(2, 9, toy.WIDTH)
    row, last = torch.tensor([0, 1, 1]), torch.tensor([7, 3, 8])
    context, _ = reversed_context(hidden, row, torch.zeros_like(last), last)
    column = torch.tensor([[5, 6], [2, -1], [0, 4]])
    place = places_in_context(column, last)
    assert place.tolist() == [[2, 1], [1, -1], [8, 4]]
    for image in range(3):
        for number in range(2):
            if column[image, number] >= 0:
                assert torch.equal(context[image, place[image, number]], hidden[row[image], column[image, number]])


def test_only_its_own_letter_reaches_a_cell():
    cells = GlyphCells(GlyphSpec(pitch=4, channels=2), toy.WIDTH, (8, 24), (4, 12))
    hidden = torch.randn(1, 9, toy.WIDTH, requires_grad=True)
    cells(hidden, torch.tensor([[8, 3]]))[0, :, :, 4:6].sum().backward()
    assert hidden.grad[0, 8].any()
    assert not hidden.grad[0, :8].any()
