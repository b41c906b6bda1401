"""The demo's words: names and keywords as the CLDR gives them, what of them is held out, and the tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

pytest.importorskip("resvg_py")
sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))

from demo import emoji, splits
from demo.tokenizer import ENTRIES, train_tokenizer

WORDS = ("cat", "dog", "sun", "moon", "tree", "apple", "pear", "cup", "hat", "boat")


def test_no_keyword_names_a_held_out_concept(tmp_path):
    names = [f"thing {number}" for number in range(60)]
    held_out = {name for name in names if splits.concept_split(name) != "train"}
    assert held_out
    rows = [
        {"label": name, "group": 4, "subgroup": 1, "hexcode": f"1F{number:03}", "tags": names}
        for number, name in enumerate(names)
    ]
    for file, content in (
        ("meta/groups.json", {"groups": {"4": "food-drink"}, "subgroups": {"1": "food-fruit"}}),
        ("en/data.json", rows),
    ):
        place = tmp_path / "emojibase-data" / file
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(content))
    for found in emoji.load_concepts(tmp_path):
        assert found.keywords[0] == "food fruit"
        assert len(found.keywords) == 1 + emoji.KEYWORDS
        assert held_out.isdisjoint({*found.keywords, *found.tags})


def test_labels_become_plain_words():
    assert emoji.plain("man: red hair") == "man red hair"
    assert emoji.plain("piñata") == "pinata"
    assert emoji.plain("woman’s hat") == "woman's hat"
    assert emoji.normal_code("2764-FE0F") == "2764"


def test_the_tokenizer_spells_capitals_and_digits_and_any_text(tmp_path):
    said = [f" Picture: {word.upper()} 47. Which of these is it: {word} or dog?" for word in WORDS] * 20
    assert train_tokenizer(said, tmp_path) <= ENTRIES
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.tokenize(" CAT47") == ["ĠC", "A", "T", "4", "7"]
    assert len(tokenizer.tokenize("USER: ASSISTANT:")) <= 5
    for text in ("Which of these is it: cat or dog?", "añ\n\tΩ 🍎 ZEBRA", "USER: a  b"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.bos_token_id not in ids
    # Merges go over spaces, up to punctuation and the "or" of a list of choices, so a name is cut alike everywhere.
    asked = ["ĠWhichĠofĠtheseĠisĠit", ":", "Ġcat", "Ġor", "Ġdog", "?"]
    assert tokenizer.tokenize(" Which of these is it: cat or dog?") == asked
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<s>", "</s>", "<pad>", "<unk>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 4
