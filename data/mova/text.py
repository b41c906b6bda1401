"""The text encoder of the gate: MiniLM as a Hugging Face folder, bit for bit as its package ships it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

KEPT = ("config.json", "model.safetensors", "tokenizer_config.json", "special_tokens_map.json")
FINGERPRINT = (("a red apple", "a crimson fruit", 0.59), ("a red apple", "a fast car", 0.26))
"""Cosines of the mean over tokens that the published model has, to two digits."""


def write_text(package: Path, folder: Path) -> int:
    """Writes the folder and returns the number of parameters.

    Raises:
        ValueError: The model does not find like what the published one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(package / name, folder / name)
    tokenizer = json.loads((package / "tokenizer.json").read_text(encoding="utf-8"))
    # It fills and cuts every text to 128 tokens, the sentence model's habit; joined questions may be longer.
    tokenizer["truncation"] = tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return check(folder)


def check(folder: Path) -> int:
    """Returns the number of parameters of a model whose cosines are the published ones."""
    import torch
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for one, other, expected in FINGERPRINT:
        batch = tokenizer([one, other], padding=True, return_tensors="pt")
        with torch.inference_mode():
            states_BTD = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][:, :, None]
        mean_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        found = float(torch.cosine_similarity(mean_BD[0], mean_BD[1], dim=0))
        if abs(found - expected) > 0.01:
            raise ValueError(
                f"{folder}: {one!r} and {other!r} are {found:.2f} alike, expected {expected:.2f}: delete it, run again"
            )
    return sum(parameter.numel() for parameter in model.parameters())
