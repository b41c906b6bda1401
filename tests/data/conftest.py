"""A small packed source and a small fast tokenizer, made once; this folder's own modules importable."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmmoe.data.pack import pack

sys.path.insert(0, str(Path(__file__).parent))

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WORDS = """A chat between a curious user and an artificial intelligence assistant The assistant gives helpful detailed
polite answers to the user ' s questions USER ASSISTANT What colour is it red green blue yes no or Compare . : , ?"""


@pytest.fixture(scope="session")
def tokenizer():
    """Like the demo's: fast, with a first token that it does not add by itself."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *WORDS.split()]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def write_rows(folder, count, *, every_third_text_only=True, size=(12, 8)):
    """Writes `count` rows and their pictures; row i shows the colour its answer names."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        row = {"id": f"pic.{i}", "conversations": [{"from": "human", "value": "What colour ?"}]}
        row["conversations"].append({"from": "gpt", "value": colour + " and yes" * (i % 4)})
        if not (every_third_text_only and i % 3 == 2):
            pixels = np.full((size[1], size[0], 3), COLOURS[colour], dtype=np.uint8)
            pixels[0, 0] = (i % 256, i // 256, 7)
            Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
            row["image"] = f"{i}.png"
            row["conversations"][0]["value"] = "<image>\nWhat colour ?"
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json", folder / "images"


@pytest.fixture(scope="session")
def write_llava():
    return write_rows


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("llava"), 30)


@pytest.fixture
def packed(llava, tmp_path):
    pack(*llava, tmp_path / "shards", samples_per_shard=7, domain="colour")
    return tmp_path / "shards"
