"""Local Hugging Face model folders: what they hold, whether it is what was declared, and what names their weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from mmmoe.paths import resolve


def missing_in(path: str, what: str) -> str | None:
    """Returns what a declared folder lacks, in words, or None."""
    folder = resolve(path)
    if not (folder / "config.json").is_file():
        return f"{path} holds no {what} model (no config.json); put one there (nothing is downloaded)"
    if not any(folder.glob("*.safetensors")):
        return f"{path} has a config but no *.safetensors weights"
    return None


def folder_config(folder: Path, where: str = "language.path") -> dict[str, Any]:
    """Returns the fields of a Hugging Face folder's config.json.

    Raises:
        ValueError: There is no such folder, or no such file in it.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{where} {folder} is no folder; put the Hugging Face model there (nothing is downloaded)")
    if not file.is_file():
        raise ValueError(f"{where} {folder} has no config.json; it is not a Hugging Face model folder")
    fields: dict[str, Any] = json.loads(file.read_text())
    return fields


def compare_declared(folder: Path, declared: dict[str, Any], found: dict[str, Any], where: str) -> None:
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
            f"{folder / 'config.json'} differs from {where} ({'; '.join(differing)}); "
            f"{'write `config: null` to take its own, or ' if where.endswith('config') else ''}correct one of the two"
        )


def declared_config(path: str | None, config: dict[str, Any] | None, where: str) -> Any:
    """Returns the transformers configuration of a part: the declared fields, or those of its folder.

    Raises:
        ValueError: for an unknown model type or field, or where there is neither.
    """
    fields = dict(config) if config is not None else folder_config(resolve(path or ""), f"{where}.path")
    model_type = fields.pop("model_type", None)
    try:
        built = AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ValueError(f"{where}.config.model_type {model_type!r} is not known to transformers") from error
    plain = AutoConfig.for_model(model_type)
    unknown = sorted(key for key in fields if not hasattr(plain, key) and not key.startswith("rope_"))
    if config is not None and unknown:
        raise ValueError(f"{where}.config has fields that {model_type} does not know: {unknown}")
    return built


def pretrained(
    model_class: Any, path: str, config: dict[str, Any] | None, where: str, what: str, prefix: str = ""
) -> tuple[Any, str]:
    """Returns the model of a local folder in float32, and the digest of its weights.

    Args:
        model_class: class of transformers.
        path: folder, as declared.
        config: declared fields that the folder's must equal.
        where: what the fields are called in a message.
        what: the kind of model that is wanted there, for messages.
        prefix: of the tensors that must be there; others may be missing.

    Raises:
        ValueError: The folder is no model, another one than declared, or lacks weights.
    """
    missing = missing_in(path, what)
    if missing:
        raise ValueError(missing)
    folder = resolve(path)
    if config is not None:
        compare_declared(folder, config, folder_config(folder), where)
    model, report = model_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    lost = sorted(name for name in report["missing_keys"] if name.startswith(prefix))
    if lost:
        raise ValueError(f"the weights in {folder} lack {len(lost)} tensors, the first are {lost[:5]}")
    return model, weights_digest(folder)


def weights_digest(folder: Path) -> str:
    """Returns the first 16 hex digits of a sha256 over a folder's weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def state_digest(module: nn.Module) -> str:
    """Returns the same for weights that come from no file; `none` on the meta device."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        if tensor.is_meta:
            return "none"
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in fields.items() if key != "model_type"}
    config: dict[str, Any] = AutoConfig.for_model(fields["model_type"], **rest).to_dict()
    return config
