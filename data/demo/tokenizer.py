"""The small language model's tokenizer: byte-level BPE over phrases, with capital letters and digits one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ENTRIES = 3072
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
ROLES = ("USER", "ASSISTANT")
"""The template's role names, whole: spelled by letter they would be half of a short dialogue's tokens."""
WORDS = r" ?(?:[A-Z](?=[a-z]))?[a-z]+(?:[ '’-](?!or\b)[a-z]+)*"
PIECES = rf" or\b|{WORDS}| ?[A-Z]| ?[0-9]| ?[^\sA-Za-z0-9]+|\s"


def train_tokenizer(texts: Iterable[str], folder: Path, size: int = ENTRIES) -> int:
    """Writes the tokenizer of `size` entries as transformers loads it, and returns how many it has.

    Merges go across spaces up to the next punctuation mark (SuperBPE, arXiv 2503.13423): a name like "guide dog" and
    a fixed question become one token each, so dialogues are a third shorter and an answer is one choice. Words in
    pictures are printed in capitals. As a capital is always one token there, reading a word that was never trained on
    is composing known tokens. No bos is added by the tokenizer: the template does that.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(ROLES),
        min_frequency=2,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False, single_word=True, lstrip=True) for role in ROLES])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Written here rather than by transformers, whose import alone takes longer than the training.
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())
