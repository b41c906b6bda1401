"""Which files a declared part takes its weights from, and what is wrong with them, known without reading a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mmmoe.models.folder import compare_declared, folder_config, missing_in
from mmmoe.models.image_decoder.spec import ImageDecoderSpec
from mmmoe.models.spec import PartSpec, PretrainedLanguage, ScratchLanguage, SpeechDecoderSpec
from mmmoe.models.towers.clip_checkpoint import pickle_problem
from mmmoe.models.towers.onnx_weights import onnx_weights
from mmmoe.models.towers.spec import FolderTower, OnnxTowerSpec, OpenCLIPTower
from mmmoe.paths import resolve

Declared = PretrainedLanguage | ScratchLanguage | PartSpec
NAMES = {
    "whisper": "Whisper",
    "ast": "AST",
    "speech_decoder": "Whisper",
    "dinov2": "DINOv2",
    "sam": "Segment Anything",
    "pix2struct": "Pix2Struct",
    "vit_adapter": "CLIP",
}
"""What stands in the folder of a part; others hold a language model."""
SAMPLE_BYTES = 2**20


def weight_problems(part: Declared) -> Iterator[str]:
    """Yields what is missing or other than declared, each sentence with the key it belongs to."""
    if isinstance(part, OpenCLIPTower) and part.path is not None and not resolve(part.path).is_file():
        yield f"path: no file {part.path}; put the open_clip checkpoint there"
    if isinstance(part, OpenCLIPTower) and part.path is not None:
        problem = pickle_problem(resolve(part.path), part.allow_pickle)
        if problem is not None:
            yield f"path: {problem}"
    if isinstance(part, OnnxTowerSpec) and not resolve(part.path).is_file():
        yield f"path: no file {part.path}; put the ONNX file there"
    if isinstance(part, ImageDecoderSpec):
        from mmmoe.models.image_decoder.layout import layout_problems  # loads diffusers

        yield from layout_problems(part)
    folder = _folder(part)
    if folder is None:
        return
    missing = missing_in(folder, NAMES.get(part.kind, "Hugging Face"))
    if missing is not None:
        yield f"path: {missing}"
        return
    is_connector = isinstance(part, SpeechDecoderSpec)
    declared = part.whisper_fields() if isinstance(part, SpeechDecoderSpec) else getattr(part, "config", None)
    if declared is not None:
        where = "the declared sizes" if is_connector else "the declared config"
        try:
            compare_declared(resolve(folder), declared, folder_config(resolve(folder)), where)
        except ValueError as error:
            yield f"{'path' if is_connector else 'config'}: {error}"


def weight_files(part: Declared) -> list[Path]:
    """Returns the files that hold a part's weights, as far as they are there."""
    if isinstance(part, OpenCLIPTower):
        return [resolve(part.path)] if part.path else []
    if isinstance(part, OnnxTowerSpec):
        return list(onnx_weights(resolve(part.path)).files) if resolve(part.path).is_file() else []
    if isinstance(part, ImageDecoderSpec):
        from mmmoe.models.image_decoder.layout import layout_files

        return layout_files(part)
    folder = _folder(part)
    return sorted(resolve(folder).glob("*.safetensors")) if folder is not None else []


def base_fingerprint(part: Declared) -> str:
    """Returns a short digest of a part's base weights, the language model's as a rule; empty where they are fresh.

    Sizes, beginnings and ends of the files: hashing tens of gigabytes at every start would take minutes, and two
    trainings of one architecture differ in these, too.
    """
    files = weight_files(part)
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(SAMPLE_BYTES))
            stream.seek(max(0, size - SAMPLE_BYTES))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _folder(part: Declared) -> str | None:
    return part.path if isinstance(part, PretrainedLanguage | FolderTower | SpeechDecoderSpec) else None
