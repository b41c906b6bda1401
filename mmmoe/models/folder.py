"""Local Hugging Face model folders: what they hold, whether it is what was declared, and what names their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from mmmoe.paths import resolve

Colour = tuple[float, float, float]
COLOURS = ("image_mean", "image_std")


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
    differing = list(_differences(declared, _complete(declared), _complete(found)))
    if differing:
        raise ValueError(
            f"{folder / 'config.json'} differs from {where} ({'; '.join(differing)}); "
            f"{'write `config: null` to take its own, or ' if where.endswith('config') else ''}correct one of the two"
        )


def declared_config(
    path: str | None, config: dict[str, Any] | None, where: str, model_types: Collection[str] = ()
) -> Any:
    """Returns the transformers configuration of a part: the declared fields, or those of its folder.

    Args:
        path: folder, as declared.
        config: declared fields.
        where: key path of the part, for messages.
        model_types: which are wanted; empty for any.

    Raises:
        ValueError: for an unknown or another model type, an unknown field, or where there is neither.
    """
    fields = dict(config) if config is not None else folder_config(resolve(path or ""), f"{where}.path")
    model_type = fields.pop("model_type", None)
    if model_types and model_type not in model_types:
        found = f"{where}.config" if config is not None else f"{where}.path {path}"
        raise ValueError(f"{found} is of model_type {model_type!r}, but {' or '.join(model_types)} is wanted here")
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


def stated_colours(path: str | None, usual: tuple[Colour, Colour]) -> tuple[Colour, Colour]:
    """Returns the mean and std of colours that a folder's image processor states, or the usual ones."""
    file = resolve(path) / "preprocessor_config.json" if path is not None else None
    stated = json.loads(file.read_text()) if file is not None and file.is_file() else {}
    mean, std = (tuple(stated.get(key) or default) for key, default in zip(COLOURS, usual, strict=True))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{file} states {COLOURS[0]} {mean} and {COLOURS[1]} {std}; three numbers of each are needed")
    return mean, std


def tensors_in(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Returns single tensors of a folder's safetensors files by name.

    Raises:
        ValueError: One is in none of them.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
    missing = sorted(set(names) - set(found))
    if missing:
        raise ValueError(f"the weights in {folder} lack {', '.join(missing)}")
    return found


def weights_digest(folder: Path) -> str:
    """Returns the first 16 hex digits of a sha256 over a folder's weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def state_digest(module: nn.Module) -> str:
    """Returns the same for weights that come from no file; `none` on the meta device."""
    return tensors_digest(module.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the same for tensors in memory."""
    digest = hashlib.sha256()
    for tensor in tensors.values():
        if tensor.is_meta:
            return "none"
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _differences(
    declared: dict[str, Any], want: dict[str, Any], have: dict[str, Any], inside: str = ""
) -> Iterator[str]:
    """Yields the declared fields that differ; of a part's configuration inside another only its declared ones."""
    # transformers 5 gathers rope_theta and its kin in one field.
    for key in dict.fromkeys("rope_parameters" if key.startswith("rope_") else key for key in declared):
        part, one, other = declared.get(key), want.get(key), have.get(key)
        if isinstance(part, dict) and isinstance(one, dict) and isinstance(other, dict) and key != "rope_parameters":
            yield from _differences(part, one, other, f"{inside}{key}.")
        elif one != other:
            yield f"{inside}{key}: declared {one!r}, found {other!r}"


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in fields.items() if key != "model_type"}
    config: dict[str, Any] = AutoConfig.for_model(fields["model_type"], **rest).to_dict()
    return config
