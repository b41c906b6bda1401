"""What CIDEr-D, BLEU and ROUGE-L count in captions that are tokens parted by spaces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

Gram = tuple[str, ...]
LONGEST = 4
SIGMA = 6.0
BETA = 1.2
Vectors = tuple[list[dict[Gram, float]], list[float], int]
"""By length of n-gram the weight of each and their norm; and how many pairs of neighbours there are."""


def grams(text: str) -> Counter[Gram]:
    """Returns how often each n-gram of one to four tokens is there."""
    words = text.split()
    return Counter(tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))


def documents(references: Sequence[Sequence[str]]) -> Counter[Gram]:
    """Returns of each n-gram for how many images it is in a reference."""
    return Counter(gram for texts in references for gram in {gram for text in texts for gram in grams(text)})


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns CIDEr-D of each caption (arXiv 1411.5726), document frequencies taken from these references.

    10 times the mean over n of the clipped cosine of tf-idf vectors, times exp(-(length difference)^2 / (2 * 6^2)), as
    pycocoevalcap computes it: its length is the number of pairs of neighbours, one less than that of tokens.
    """
    frequencies, most = documents(references), math.log(len(references))
    found = []
    for prediction, texts in zip(predictions, references, strict=True):
        ours = _vectors(grams(prediction), frequencies, most)
        likeness = [_likeness(ours, _vectors(grams(text), frequencies, most)) for text in texts]
        found.append(10.0 * sum(likeness) / len(texts))
    return found


def _vectors(counts: Counter[Gram], frequencies: Mapping[Gram, int], most: float) -> Vectors:
    weights: list[dict[Gram, float]] = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (most - math.log(max(1.0, frequencies.get(gram, 0))))
    norms = [math.sqrt(sum(weight * weight for weight in part.values())) for part in weights]
    return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _likeness(ours: Vectors, theirs: Vectors) -> float:
    cosines = []
    for our, our_norm, their, their_norm in zip(ours[0], ours[1], theirs[0], theirs[1], strict=True):
        shared = sum(min(weight, their[gram]) * their[gram] for gram, weight in our.items() if gram in their)
        cosines.append(shared / (our_norm * their_norm) if our_norm and their_norm else shared)
    apart = ours[2] - theirs[2]
    return math.exp(-(apart**2) / (2 * SIGMA**2)) * sum(cosines) / LONGEST


def bleu_counts(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Returns what BLEU adds up: tokens, those of the reference nearest in length, n-grams guessed and right."""
    words = len(prediction.split())
    nearest = min((abs(len(text.split()) - words), len(text.split())) for text in references)[1]
    found = {"tokens": float(words), "reference tokens": float(nearest)}
    ours, most = grams(prediction), Counter[Gram]()
    for text in references:
        most |= grams(text)
    for n in range(1, LONGEST + 1):
        found[f"guessed {n}"] = float(max(0, words - n + 1))
        found[f"right {n}"] = float(sum(min(k, most[gram]) for gram, k in ours.items() if len(gram) == n))
    return found


def rouge(prediction: str, references: Sequence[str]) -> float:
    """Returns ROUGE-L: F of the longest common subsequence, beta 1.2, best precision and best recall of the references.

    An empty text counts as one empty token, as in pycocoevalcap.
    """
    ours = prediction.split(" ")
    found = [(common(ours, text.split(" ")), len(text.split(" "))) for text in references]
    precision = max(length / len(ours) for length, _ in found)
    recall = max(length / size for length, size in found)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
