"""A Uni-MoE of toy size: the toy image tower, a fresh Whisper and AST of width 16, the two-layer Llama of width 32."""

from __future__ import annotations

import torch
from models_toy import CONFIG, ToyTower, lora_spec, mole_spec, randomise

from mmmoe.config.ids import IGNORE_ID, MEDIA_IDS
from mmmoe.models.build import build_tower
from mmmoe.models.connectors.audio_qformer import AudioQFormer
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.connectors.speech_decoder import SpeechDecoder
from mmmoe.models.families.uni_moe import UniMoE
from mmmoe.models.language import build_language
from mmmoe.models.spec import AudioQFormerSpec, ConnectorSpec, ScratchLanguage, SpeechDecoderSpec
from mmmoe.models.towers.spec import ASTTowerSpec, WhisperTowerSpec

WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "num_mel_bins": 8,
    "max_source_positions": 60, "max_target_positions": 12, "vocab_size": 20, "pad_token_id": 0,
}  # fmt: skip
AST = {
    "model_type": "audio-spectrogram-transformer", "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_length": 56, "num_mel_bins": 32,
}  # fmt: skip
SPEECH_TOWER = WhisperTowerSpec(config=WHISPER, chunk_seconds=0.4, pool=2)
AUDIO_TOWER = ASTTowerSpec(config=AST, chunk_seconds=0.5)
QUERIES = {"layers": 2, "width": 16, "heads": 2, "query_std": 0.5}
RAW = {"image": (3, 4, 4), "video": (2, 3, 4, 4), "speech": (8, 40), "audio": (56, 32)}
"""Shape of an item of each kind."""


def toy_uni(*, speech=True, audio=True, frames=2, seed=0):
    torch.manual_seed(seed)
    towers, connectors = {"image": ToyTower()}, {"image": MLPConnector(ConnectorSpec(), 12, 32, 4)}
    if speech:
        towers["speech"] = build_tower(SPEECH_TOWER)
        connectors["speech"] = SpeechDecoder(SpeechDecoderSpec(queries=3, **QUERIES), 16, 32)
    if audio:
        towers["audio"] = build_tower(AUDIO_TOWER)
        connectors["audio"] = AudioQFormer(AudioQFormerSpec(queries=2, **QUERIES), 16, 32)
    language = build_language(ScratchLanguage(config=CONFIG, tokenizer="none"))
    return UniMoE(towers, connectors, language, 128, frames)


def toy_uni_moe():
    """Returns the toy with attention LoRA and routed experts, all random."""
    model = toy_uni()
    model.add_adapters([lora_spec(), mole_spec()])
    randomise(model)
    return model


def uni_batch(rows=(("image",), ("speech", "speech", "video"), (), ("audio", "image")), seed=4):
    """Returns the forward's arguments: a row's media after its first id, the last three ids are targets."""
    rng = torch.Generator().manual_seed(seed)
    lengths = [7 + len(row) for row in rows]
    ids = torch.randint(3, 50, (len(rows), max(lengths)), generator=rng)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.full_like(ids, IGNORE_ID)
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        labels[at, length - 3 : length] = ids[at, length - 3 : length]
        for place, kind in enumerate(row, 1):
            ids[at, place] = MEDIA_IDS[kind]
    media = {
        kind: torch.stack([torch.randn(shape, generator=rng) for _ in range(count)])
        for kind, shape in RAW.items()
        if (count := sum(row.count(kind) for row in rows))
    }
    return {
        "input_ids_BT": ids.masked_fill(~mask, 0), "attention_mask_BT": mask, "labels_BT": labels, "media": media
    }  # fmt: skip
