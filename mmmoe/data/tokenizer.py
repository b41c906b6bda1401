"""Which tokenizer a folder holds, and what mmmoe asks of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import AutoTokenizer

from mmmoe.data.sentencepiece import SentencePieceTokenizer


class Tokenizer(Protocol):
    """What templates and evaluation ask of a tokenizer; every tokenizer of transformers has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None
    eos_token: str | None

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Returns ids."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str:
        """Returns text."""

    def __len__(self) -> int:
        """Returns the size of the vocabulary."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Returns the tokenizer of a local Hugging Face folder, with a padding token; nothing is downloaded.

    Without a padding token of its own (Llama, Vicuna) the unknown token pads, as in LLaVA-1.5, else the end token.
    Padding is masked, so which one it is changes no number.

    Raises:
        ValueError: The folder or its tokenizer is missing, broken or has nothing to pad with.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"tokenizer folder {folder} does not exist; download the model there or correct the path")
    names = {path.name for path in folder.iterdir()}
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise ValueError(
            f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); "
            "copy the tokenizer's files there or set `tokenizer` to their folder"
        )
    tokenizer: Any = (
        _sentencepiece(folder) if "tokenizer.model" in names and "tokenizer.json" not in names else _auto(folder)
    )
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id
        if substitute is None:
            raise ValueError(
                f"the tokenizer in {folder} has no padding, unknown or end token; "
                'name one as "pad_token" in its tokenizer_config.json'
            )
        tokenizer.pad_token_id = substitute
    return cast(Tokenizer, tokenizer)


def _auto(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}); copy its files again") from error


def _sentencepiece(folder: Path) -> SentencePieceTokenizer:
    settings: dict[str, Any] = {}
    beside = folder / "tokenizer_config.json"
    if beside.is_file():
        try:
            settings = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{beside} is not JSON ({error}); copy it again") from error
    pad = settings.get("pad_token")
    return SentencePieceTokenizer(
        folder / "tokenizer.model",
        legacy=settings.get("legacy") is not False,
        pad_token=pad.get("content") if isinstance(pad, dict) else pad,
    )
