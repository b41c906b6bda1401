"""Causal language models of Hugging Face: from a local folder, or fresh from a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from mmmoe.models.folder import compare_declared, declared_config, folder_config
from mmmoe.models.spec import ModelSpec, PretrainedLanguage, ScratchLanguage
from mmmoe.paths import resolve

SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config fields of models whose logits are more than the head's product (Gemma 2, Cohere, Granite)."""


def build_language(spec: PretrainedLanguage | ScratchLanguage, *, meta: bool = False) -> nn.Module:
    """Returns the language model; on the meta device it is built from the declared fields and reads no weights.

    Raises:
        ValueError: for a missing folder, missing weights, or a folder that is not what `config` declares.
    """
    if isinstance(spec, ScratchLanguage):
        model = _fresh(declared_config(None, spec.config, "language"), torch.float32)
    else:
        dtype: torch.dtype = getattr(torch, spec.dtype)
        model = _fresh(declared_config(spec.path, spec.config, "language"), dtype) if meta else _pretrained(spec, dtype)
    scaled = [field for field in SCALED_HEADS if getattr(model.config, field, None) not in (None, 1.0)]
    if scaled:
        raise ValueError(f"this language model changes its head's logits ({', '.join(scaled)}); that is not supported")
    return model


def _fresh(config: Any, dtype: torch.dtype) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def _pretrained(spec: PretrainedLanguage, dtype: torch.dtype) -> nn.Module:
    folder = resolve(spec.path)
    found = folder_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"language.path {folder} has no *.safetensors file; convert the weights to safetensors first")
    if spec.config is not None:
        compare_declared(folder, spec.config, found, "model.language.config")
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, attn_implementation="sdpa",
        output_loading_info=True,
    )  # fmt: skip
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"the weights in {folder} lack {len(missing)} tensors, the first are {missing[:5]}")
    result: nn.Module = model
    return result


def tokenizer_folder(spec: ModelSpec) -> str:
    """Returns the declared folder of a model's tokenizer: its own, or the language model's."""
    language = spec.language
    return language.tokenizer or (language.path if isinstance(language, PretrainedLanguage) else "")
