"""Towers of speech and sound, and what comes out of a Whisper folder: agreement with transformers, refusals, keys."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import ASTConfig, ASTModel, WhisperConfig, WhisperForConditionalGeneration
from uni_toy import AST, AUDIO_TOWER, QUERIES, SPEECH_TOWER, WHISPER

from mmmoe.models.build import build_tower
from mmmoe.models.connectors.audio_qformer import AudioQFormer
from mmmoe.models.connectors.speech_decoder import SpeechDecoder
from mmmoe.models.spec import AudioQFormerSpec, SpeechDecoderSpec
from mmmoe.models.towers.spec import ASTTowerSpec, EfficientNetLiteTower, SpectrogramTowerSpec, WhisperTowerSpec
from mmmoe.models.towers.whisper import WhisperTower
from mmmoe.models.weights import weight_files, weight_problems


def plain(fields):
    return {name: value for name, value in fields.items() if name != "model_type"}


@pytest.fixture
def whisper(tmp_path):
    """A saved Whisper and the folder it is in."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**plain(WHISPER))).eval()
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


@pytest.fixture
def ast(tmp_path):
    torch.manual_seed(0)
    model = ASTModel(ASTConfig(**plain(AST))).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_whisper_equals_transformers_on_whole_chunks(whisper):
    model, folder = whisper
    tower = build_tower(WhisperTowerSpec(path=folder, chunk_seconds=1.2))
    mel = torch.randn(3, 8, tower.max_frames)
    with torch.no_grad():
        hidden = model.model.encoder(mel).last_hidden_state
        assert torch.equal(tower(mel), hidden)
        pooled = build_tower(WhisperTowerSpec(path=folder, chunk_seconds=1.2, pool=4))(mel)
    torch.testing.assert_close(pooled[:, 2], hidden[:, 8:12].mean(1))
    assert (tower.kind, tower.sample_rate, tower.num_mels, tower.channels) == ("speech", 16_000, 8, 16)
    assert (tower.max_frames, tower.num_tokens, pooled.shape) == (120, 60, (3, 15, 16))


def test_short_chunks_take_the_first_positions(whisper):
    model, folder = whisper
    tower = build_tower(WhisperTowerSpec(path=folder, chunk_seconds=0.4))
    mel = torch.randn(2, 8, 40)
    twin = WhisperForConditionalGeneration(WhisperConfig(**plain(WHISPER) | {"max_source_positions": 20})).eval()
    state = model.state_dict()
    state["model.encoder.embed_positions.weight"] = state["model.encoder.embed_positions.weight"][:20]
    twin.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(tower(mel), twin.model.encoder(mel).last_hidden_state)
    assert tower.max_frames == 40


def test_ast_equals_transformers_without_its_class_tokens(ast):
    model, folder = ast
    tower = build_tower(ASTTowerSpec(path=str(folder), config=AST, chunk_seconds=0.5))
    bank = torch.randn(2, 56, 32)
    with torch.no_grad():
        assert torch.equal(tower(bank), model(bank).last_hidden_state[:, 2:])
    assert (tower.kind, tower.num_mels, tower.max_frames, tower.num_tokens) == ("audio", 32, 56, 2 * 5)
    assert (tower.mean, tower.std) == (-4.2677393, 4.5689974)
    (folder / "preprocessor_config.json").write_text(json.dumps({"mean": -1.0, "std": 2.0}))
    stated = build_tower(ASTTowerSpec(path=str(folder), chunk_seconds=0.5))
    assert (stated.mean, stated.std) == (-1.0, 2.0)


def test_spectrogram_is_the_image_network_on_a_grey_picture():
    tower = build_tower(SpectrogramTowerSpec(num_mels=64, chunk_seconds=0.6))
    image = build_tower(EfficientNetLiteTower(image_size=64))
    bank = torch.randn(2, 64, 64)
    assert (tower.max_frames, tower.num_tokens, tower.channels) == (64, 4, image.channels)
    with torch.no_grad():
        grey = bank.transpose(1, 2)[:, None].expand(2, 3, 64, 64)
        torch.testing.assert_close(tower(bank), image(grey))
        assert build_tower(SpectrogramTowerSpec(num_mels=32, chunk_seconds=6))(torch.zeros(1, 608, 32)).shape[1] == 19
    assert tower.key != image.key


@pytest.mark.parametrize("spec", [SPEECH_TOWER, AUDIO_TOWER, SpectrogramTowerSpec(chunk_seconds=1)])
def test_towers_are_frozen_and_deterministic(spec):
    torch.manual_seed(0)
    tower = build_tower(spec).train()
    shape = (1, tower.num_mels, tower.max_frames) if tower.kind == "speech" else (1, tower.max_frames, tower.num_mels)
    picture = torch.randn(shape)
    assert torch.equal(tower(picture), tower(picture))
    assert tower(picture).shape == (1, tower.num_tokens, tower.channels)
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert tower.bfloat16()(picture).dtype == torch.bfloat16


def test_keys_tell_weights_and_options_apart(whisper, tmp_path_factory):
    model, folder = whisper
    other = str(tmp_path_factory.mktemp("other"))
    model.model.encoder.conv1.bias.data += 1
    model.save_pretrained(other)
    options = [{}, {"pool": 2}, {"chunk_seconds": 0.8}]
    specs = [WhisperTowerSpec(**{"path": path, "chunk_seconds": 0.4} | o) for path in (folder, other) for o in options]
    assert len({build_tower(spec).key for spec in specs}) == 6
    assert build_tower(specs[0]).key == build_tower(specs[0]).key
    keys = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        keys.add(build_tower(SPEECH_TOWER).key)
    assert len(keys) == 2


def test_refusals_of_towers(whisper):
    _, folder = whisper
    with pytest.raises(ValueError, match="no/such holds no Whisper model"):
        WhisperTower(WhisperTowerSpec(path="no/such", config=WHISPER, chunk_seconds=0.4))
    with pytest.raises(ValueError, match=r"has 60 positions of 20 ms; give at most 1\.2"):
        build_tower(WhisperTowerSpec(path=folder))
    with pytest.raises(ValueError, match=r"tower\.config \(d_model: declared 32, found 16\)"):
        build_tower(WhisperTowerSpec(path=folder, config=WHISPER | {"d_model": 32}, chunk_seconds=0.4))
    with pytest.raises(ValueError, match="give a path to a model folder, or a config"):
        WhisperTowerSpec()
    with pytest.raises(ValueError, match="config needs model_type"):
        ASTTowerSpec(config={"hidden_size": 16})


def test_weights_are_checked_without_being_read(whisper, tmp_path):
    _, folder = whisper
    good = WhisperTowerSpec(path=folder, config=WHISPER, chunk_seconds=0.4)
    assert list(weight_problems(good)) == []
    assert [file.name for file in weight_files(good)] == ["model.safetensors"]
    wrong = good.model_copy(update={"config": WHISPER | {"encoder_layers": 3}})
    assert "config: " in next(weight_problems(wrong))
    decoder = SpeechDecoderSpec(path=folder, queries=5, **QUERIES)
    assert list(weight_problems(decoder)) == []
    (problem,) = weight_problems(decoder.model_copy(update={"layers": 3, "heads": 4}))
    assert "decoder_layers: declared 3, found 2; decoder_attention_heads: declared 4, found 2" in problem
    assert next(weight_problems(decoder.model_copy(update={"path": str(tmp_path / "no")}))).startswith("path: ")
    (tmp_path / "model.safetensors").unlink()
    assert list(weight_problems(good)) == [f"path: {folder} has a config but no *.safetensors weights"]
    assert list(weight_problems(SPEECH_TOWER)) == weight_files(SPEECH_TOWER) == []


def test_speech_connector_takes_a_whisper_decoder(whisper):
    model, folder = whisper
    spec = SpeechDecoderSpec(path=folder, queries=5, layers=2, width=16, heads=2)
    connector = SpeechDecoder(spec, 16, 32)
    assert not connector.queries_1QC.any()
    features = torch.randn(3, 20, 16)
    with torch.no_grad():
        hidden = model.model.decoder(inputs_embeds=torch.zeros(3, 5, 16), encoder_hidden_states=features)
        torch.testing.assert_close(connector(features), connector.projector(hidden.last_hidden_state))
    with pytest.raises(ValueError, match="the connector's sizes"):
        SpeechDecoder(spec.model_copy(update={"layers": 1}), 16, 32)
    with pytest.raises(ValueError, match=r"connector\.queries is 13, but .* has 12 positions"):
        SpeechDecoder(spec.model_copy(update={"queries": 13}), 16, 32)
    with pytest.raises(ValueError, match="holds no Whisper model"):
        SpeechDecoder(spec.model_copy(update={"path": "no/such"}), 16, 32)


@pytest.mark.parametrize(("connector_class", "spec_class"), [
    (AudioQFormer, AudioQFormerSpec), (SpeechDecoder, SpeechDecoderSpec)
])  # fmt: skip
def test_connectors_of_another_width_train_every_weight(connector_class, spec_class):
    torch.manual_seed(0)
    connector = connector_class(spec_class(queries=3, **QUERIES), 6, 10)
    features = torch.randn(2, 7, 6, requires_grad=True)
    tokens = connector(features)
    assert tokens.shape == (2, 3, 10)
    (tokens * torch.randn(2, 3, 10)).sum().backward()
    # A bias of keys moves all scores alike: its gradient is rounding, but never none.
    assert all(p.grad is not None for p in connector.parameters())
    assert features.grad.abs().sum() > 0
    low = connector.bfloat16()(features.detach())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), tokens, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("connector_class", "spec_class", "is_causal"), [
    (AudioQFormer, AudioQFormerSpec, False), (SpeechDecoder, SpeechDecoderSpec, True)
])  # fmt: skip
def test_speech_queries_are_causal_and_audio_queries_are_not(connector_class, spec_class, is_causal):
    torch.manual_seed(0)
    connector = connector_class(spec_class(queries=4, **QUERIES), 16, 8).eval()
    features = torch.randn(1, 6, 16)
    with torch.no_grad():
        before = connector(features)
        connector.queries_1QC[:, 3] += torch.randn(16)
        change = (connector(features) - before).abs().amax(2)[0]
    assert bool((change[:3] > 0).any()) is not is_causal
    assert change[3] > 0
