"""Whisper's weights from CTranslate2's format: a model written in it comes back as it was."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))

from uni import whisper


def write_ctranslate2(path, variables, aliases):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    types = {np.dtype(dtype): number for number, dtype in whisper.TYPES.items()}
    content = struct.pack("<I", whisper.FORMAT) + text(whisper.SPEC) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        content += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", types[array.dtype], array.nbytes) + array.tobytes()
    content += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    path.write_bytes(content)


def ctranslate2_of(model):
    """Returns a transformers model's weights as CTranslate2 stacks and names them."""
    state = {name.removeprefix("model."): t.half().numpy() for name, t in model.state_dict().items()}
    found = {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            found[f"encoder/{conv}/{part}"] = state[f"encoder.{conv}.{part}"]

    def norm(source, target):
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def stack(sources, target):
        found[f"{target}/weight"] = np.concatenate([state[f"{name}.weight"] for name in sources])
        bias = [state.get(f"{n}.bias", np.zeros(len(state[f"{n}.weight"]), np.float16)) for n in sources]
        found[f"{target}/bias"] = np.concatenate(bias)

    for side, layers in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        found[f"{side}/num_heads"] = np.array(model.config.encoder_attention_heads, dtype=np.int16)
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(layers):
            old, new = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            norm(f"{old}.final_layer_norm", f"{new}/ffn/layer_norm")
            norm(f"{old}.self_attn_layer_norm", f"{new}/self_attention/layer_norm")
            stack([f"{old}.fc1"], f"{new}/ffn/linear_0")
            stack([f"{old}.fc2"], f"{new}/ffn/linear_1")
            stack([f"{old}.self_attn.{n}_proj" for n in "qkv"], f"{new}/self_attention/linear_0")
            stack([f"{old}.self_attn.out_proj"], f"{new}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{old}.encoder_attn_layer_norm", f"{new}/attention/layer_norm")
                stack([f"{old}.encoder_attn.q_proj"], f"{new}/attention/linear_0")
                stack([f"{old}.encoder_attn.{n}_proj" for n in "kv"], f"{new}/attention/linear_1")
                stack([f"{old}.encoder_attn.out_proj"], f"{new}/attention/linear_2")
    return found


def test_a_converted_whisper_says_what_the_original_says(tmp_path):
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    sizes = {f"{side}_{what}": n for side in whisper.SIDES for what, n in (("layers", 2), ("ffn_dim", 24))}
    heads = {f"{side}_attention_heads": 2 for side in whisper.SIDES}
    ends = {"bos_token_id": 92, "eos_token_id": 92, "pad_token_id": 92, "decoder_start_token_id": 93}
    config = WhisperConfig(
        vocab_size=1700, d_model=16, max_source_positions=30, max_target_positions=12, **sizes, **heads, **ends
    )
    model = WhisperForConditionalGeneration(config).half().float().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor).mul(0.2).half())
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_ctranslate2(tmp_path / "model.bin", ctranslate2_of(model), aliases)
    assert whisper.convert(tmp_path / "model.bin", tmp_path / "whisper") == sum(p.numel() for p in model.parameters())
    found = WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper", dtype=torch.float32).eval()
    inputs = {"input_features": torch.randn(2, 80, 60), "decoder_input_ids": torch.tensor([[93, 5, 7], [93, 1, 2]])}
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)
    assert found.config.decoder_start_token_id == 93


def test_another_or_a_cut_model_file_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<IH", 6, 6) + b"Other\0")
    with pytest.raises(ValueError, match="is 'Other' in format 6, expected 'WhisperSpec'"):
        whisper.read_variables(path)
    write_ctranslate2(path, {"a": np.zeros(100, np.float16)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="variable a has type 4 and 154 of 200 bytes: fetch it anew"):
        whisper.read_variables(path)
