"""The tokenizer of folders that hold only a SentencePiece `tokenizer.model`, as Vicuna's do.

transformers 5 reads such a folder through protobuf or tiktoken, which mmmoe does not install. This class gives what
transformers 4's slow LlamaTokenizer gave, ids equal, in both of its modes: `legacy` puts a space in front of every
stretch of text, also after an end token; otherwise only in front of the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

NO_SPACE_IN_FRONT = bytes([3 << 3 | 2, 2, 3 << 3 | 0, 0])
"""The setting normalizer_spec.add_dummy_prefix = false in protobuf's wire format.

Protobuf merges a message appended to another, later scalars winning, so these bytes behind a model file turn the
setting off; the library itself offers no way to.
"""


class SentencePieceTokenizer:
    """Text to ids and back; adds no special tokens by itself."""

    is_fast = False
    chat_template = None

    def __init__(self, model: Path, *, legacy: bool = True, pad_token: str | None = None) -> None:
        """Loads the model file.

        Raises:
            ValueError: The file is no SentencePiece model, or the padding token is not in it.
        """
        try:
            content = model.read_bytes()
            self._spaced: Any = SentencePieceProcessor(model_proto=content)
            self._bare: Any = SentencePieceProcessor(model_proto=content + NO_SPACE_IN_FRONT)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{model} is no SentencePiece model ({error}); copy it again") from error
        self.legacy = legacy
        self._model = model
        self.bos_token_id: int | None = self._special(self._spaced.bos_id())
        self.eos_token_id: int | None = self._special(self._spaced.eos_id())
        self.unk_token_id: int | None = self._special(self._spaced.unk_id())
        self.pad_token_id: int | None = self._special(self._spaced.pad_id())
        if pad_token is not None:
            self.pad_token_id = self._spaced.piece_to_id(pad_token)
            if self._spaced.id_to_piece(self.pad_token_id) != pad_token:
                raise ValueError(f"padding token {pad_token!r} is not in {model}; remove pad_token from its config")
        self.eos_token = self._text(self.eos_token_id)
        self.bos_token = self._text(self.bos_token_id)
        self.unk_token = self._text(self.unk_token_id)
        marks = [mark for mark in (self.bos_token, self.eos_token, self.unk_token) if mark]
        self._marks = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def __len__(self) -> int:
        return int(self._spaced.get_piece_size())

    @property
    def pad_token(self) -> str | None:
        """Text of the padding token."""
        return self._text(self.pad_token_id)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Returns ids; special tokens written in the text are recognised."""
        ids: list[int] = []
        if add_special_tokens and self.bos_token_id is not None:
            ids.append(self.bos_token_id)
        for place, stretch in enumerate(self._marks.split(text)):
            if not stretch:
                continue
            if place % 2:  # split() puts the recognised marks at odd places
                ids.append(self._spaced.piece_to_id(stretch))
            else:
                ids.extend((self._spaced if self.legacy or place == 0 else self._bare).encode(stretch))
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns text."""
        special = {self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id}
        kept = [int(i) for i in ids if not (skip_special_tokens and int(i) in special)]
        stretches: list[str] = []
        run: list[int] = []
        for i in kept:
            if i in special:  # the library would swallow control pieces
                stretches += [str(self._spaced.decode(run)), str(self._spaced.id_to_piece(i))]
                run = []
            else:
                run.append(i)
        return "".join([*stretches, str(self._spaced.decode(run))])

    def batch_decode(self, batch: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """Returns a text a row."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model file and the settings, so that `load_tokenizer` finds them again."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self._model.read_bytes())
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": self.legacy, "pad_token": self.pad_token}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))

    def _special(self, number: int) -> int | None:
        return int(number) if number >= 0 else None

    def _text(self, number: int | None) -> str | None:
        return None if number is None else str(self._spaced.id_to_piece(number))
