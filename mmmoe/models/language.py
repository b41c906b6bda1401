"""Causal language models of Hugging Face: from a local folder, or fresh from a configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mmmoe.models.spec import ModelSpec, PretrainedLanguage, ScratchLanguage
from mmmoe.paths import resolve

SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config fields of models whose logits are more than the head's product (Gemma 2, Cohere, Granite)."""


SAMPLE_BYTES = 2**20


def build_language(spec: PretrainedLanguage | ScratchLanguage, *, meta: bool = False) -> nn.Module:
    """Returns the language model; on the meta device it is built from the declared fields and reads no weights.

    Raises:
        ValueError: for a missing folder, missing weights, or a folder that is not what `config` declares.
    """
    if isinstance(spec, ScratchLanguage):
        model = _fresh(spec.config, torch.float32)
    else:
        dtype: torch.dtype = getattr(torch, spec.dtype)
        model = _fresh(spec.config or folder_config(resolve(spec.path)), dtype) if meta else _pretrained(spec, dtype)
    scaled = [field for field in SCALED_HEADS if getattr(model.config, field, None) not in (None, 1.0)]
    if scaled:
        raise ValueError(f"this language model changes its head's logits ({', '.join(scaled)}); that is not supported")
    return model


def _fresh(fields: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    fields = dict(fields)
    model_type = fields.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ValueError(f"language.config.model_type {model_type!r} is not known to transformers") from error
    plain = AutoConfig.for_model(model_type)
    unknown = sorted(key for key in fields if not hasattr(plain, key) and not key.startswith("rope_"))
    if unknown:
        raise ValueError(f"language.config has fields that {model_type} does not know: {unknown}")
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def _pretrained(spec: PretrainedLanguage, dtype: torch.dtype) -> nn.Module:
    folder = resolve(spec.path)
    found = folder_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"language.path {folder} has no *.safetensors file; convert the weights to safetensors first")
    if spec.config is not None:
        compare_declared(folder, spec.config, found)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, attn_implementation="sdpa",
        output_loading_info=True,
    )  # fmt: skip
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"the weights in {folder} lack {len(missing)} tensors, the first are {missing[:5]}")
    result: nn.Module = model
    return result


def folder_config(folder: Path) -> dict[str, Any]:
    """Returns the fields of a Hugging Face folder's config.json.

    Raises:
        ValueError: There is no such folder, or no such file in it.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(
            f"language.path {folder} is no folder; put the Hugging Face model there (nothing is downloaded)"
        )
    if not file.is_file():
        raise ValueError(f"language.path {folder} has no config.json; it is not a Hugging Face model folder")
    fields: dict[str, Any] = json.loads(file.read_text())
    return fields


def compare_declared(folder: Path, declared: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuses a folder whose configuration is not the declared one, so that a plan tells the truth.

    Raises:
        ValueError: naming every field that differs.
    """
    want, have = _complete(declared), _complete(found)
    # transformers 5 gathers rope_theta and its kin in one field.
    keys = dict.fromkeys("rope_parameters" if key.startswith("rope_") else key for key in declared)
    differing = [
        f"{key}: declared {want.get(key)!r}, found {have.get(key)!r}" for key in keys if want.get(key) != have.get(key)
    ]
    if differing:
        raise ValueError(
            f"{folder / 'config.json'} differs from model.language.config ({'; '.join(differing)}); "
            "write `config: null` to take the folder's own, or correct one of the two"
        )


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in fields.items() if key != "model_type"}
    config: dict[str, Any] = AutoConfig.for_model(fields["model_type"], **rest).to_dict()
    return config


def base_fingerprint(spec: ModelSpec) -> str:
    """Returns a short digest of the language model's base weights, empty where they are fresh.

    Sizes, beginnings and ends of the files: hashing tens of gigabytes at every start would take minutes, and two
    trainings of one architecture differ in these, too.
    """
    if not isinstance(spec.language, PretrainedLanguage):
        return ""
    digest = hashlib.sha256()
    for file in sorted(resolve(spec.language.path).glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(SAMPLE_BYTES))
            stream.seek(max(0, size - SAMPLE_BYTES))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def tokenizer_folder(spec: ModelSpec) -> str:
    """Returns the declared folder of a model's tokenizer: its own, or the language model's."""
    language = spec.language
    return language.tokenizer or (language.path if isinstance(language, PretrainedLanguage) else "")
