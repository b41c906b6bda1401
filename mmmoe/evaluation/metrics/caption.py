"""CIDEr, BLEU and ROUGE-L of captions, as pycocoevalcap computes them on the tokens of a Penn Treebank tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmmoe.evaluation.metrics.metric import Array, Counts, Item, Sums, Verdict, grouped, share
from mmmoe.evaluation.metrics.ngrams import LONGEST, bleu_counts, cider, rouge
from mmmoe.evaluation.metrics.treebank import tokens

TINY, SMALL = 1e-15, 1e-9
"""What pycocoevalcap adds above and below, so that nothing is divided by 0."""


@dataclass(frozen=True)
class Caption:
    """The mean CIDEr of captions, beside it BLEU-1 to BLEU-4 of all captions together and the mean ROUGE-L.

    CIDEr's document frequencies are those of the references of all items that are judged together, so a score of some
    of a benchmark's questions does not compare with that of all.
    """

    name: str = "caption"
    scale: float = 100.0
    is_share: bool = False

    def judge(self, predictions: Sequence[str], items: Sequence[Item]) -> list[Verdict]:
        """Returns CIDEr and tokens of each caption."""
        parsed = tokens(predictions)
        scores = cider(parsed, references_of(items)) if items else []
        return [Verdict(score, text or None) for score, text in zip(scores, parsed, strict=True)]

    def counts(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Counts:
        """Returns the sums of CIDEr and ROUGE-L, and what BLEU counts."""
        rows = []
        for references, verdict in zip(references_of(items), verdicts, strict=True):
            text = verdict.parsed or ""
            scores = {"cider": verdict.score, "rouge": rouge(text, references), "n": 1.0}
            rows.append(scores | bleu_counts(text, references))
        return grouped(items, {name: [row[name] for row in rows] for name in rows[0]} if rows else {})

    def headline(self, sums: Sums) -> Array:
        """Returns the mean CIDEr."""
        return share(sums["cider"], sums["n"])

    def measures(self, sums: Sums) -> dict[str, Array]:
        """Returns BLEU-1 to BLEU-4 and ROUGE-L."""
        return bleu(sums) | {"rouge l": share(sums["rouge"], sums["n"])}


def references_of(items: Sequence[Item]) -> list[list[str]]:
    """Returns the tokens of each item's references, all of which stand in one file."""
    found = iter(tokens([answer for item in items for answer in item.answers]))
    return [[next(found) for _ in item.answers] for item in items]


def bleu(sums: Sums) -> dict[str, Array]:
    """Returns BLEU-1 to BLEU-4 (ACL P02-1040) of what was counted: mean precisions, short captions penalised."""
    ratio = (np.asarray(sums["tokens"], np.float64) + TINY) / (sums["reference tokens"] + SMALL)
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    found, product = {}, np.ones_like(ratio)
    for n in range(1, LONGEST + 1):
        product = product * (sums[f"right {n}"] + TINY) / (sums[f"guessed {n}"] + SMALL)
        found[f"bleu {n}"] = np.asarray(penalty * product ** (1.0 / n))
    return found


CAPTION = Caption()
