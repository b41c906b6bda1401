"""The learned gate of a Slide-LoRA tells tasks apart in wordings that neither it nor the released rule has seen."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmmoe.config.ids import TASKS
from mmmoe.data.slide_task import keyword_task
from mmmoe.models.lora.slide import SlideGate
from mmmoe.models.lora.spec import SlideLoRASpec

FILE = Path(__file__).resolve().parents[2] / "data/text_harmony/paraphrases.jsonl"
WIDTH = 128


def embedded(question, seed):
    """Returns a random but fixed vector for each word, as an untrained embedding gives."""
    words = re.findall(r"[a-z]+|[^a-z\s]", question.lower())
    vectors = [torch.Generator().manual_seed(zlib.crc32(word.encode()) + seed) for word in words]
    return torch.stack([torch.randn(WIDTH, generator=one) for one in vectors])


def batch(split, seed):
    """Returns embeddings, the mask and the tasks of a split's prompts."""
    rows = [row for row in map(json.loads, FILE.read_text(encoding="utf-8").splitlines()) if row["split"] == split]
    vectors = [embedded(row["question"], seed) for row in rows]
    x_BTD = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    mask_BT = torch.arange(x_BTD.shape[1]) < torch.tensor([len(one) for one in vectors])[:, None]
    by_rule = torch.tensor([keyword_task(row["question"]) for row in rows])
    return x_BTD, mask_BT, torch.tensor([TASKS.index(row["task"]) for row in rows]), by_rule


@pytest.mark.parametrize("seed", range(3))
def test_held_out_wordings(seed):
    spec = SlideLoRASpec(sites=["*"], rank=4, alpha=4, gate="learned", gate_weight=1.0)
    gate = SlideGate(spec, WIDTH).train()
    x_BTD, mask_BT, task_B, _ = batch("train", seed)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=0.05)
    for _ in range(100):
        F.cross_entropy(gate.logits(x_BTD, mask_BT), task_B).backward()
        optimizer.step()
        optimizer.zero_grad()
    x_BTD, mask_BT, task_B, by_rule_B = batch("held_out", seed)
    chosen_B = gate.eval().turn(None, x_BTD, mask_BT)
    assert (by_rule_B == task_B).sum() == 12  # of 42
    assert (chosen_B == task_B).float().mean() >= 0.85
