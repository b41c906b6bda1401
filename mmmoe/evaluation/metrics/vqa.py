"""VQA accuracy: how many of ten people gave the same answer, each left out in turn, answers spelled alike first.

There are two spellings: TextVQA's (EvalAI's processor, which LLaVA's scorer takes), and VQA's own, which leaves
possessives alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict
from mmmoe.evaluation.metrics.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

ENOUGH = 3
"""So many people make an answer wholly right."""
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_MOST_PERIODS = 32
"""The original passes re.UNICODE, whose value is 32, where `sub` takes the most replacements."""


def without_punctuation(text: str) -> str:
    """Returns a text whose marks became spaces, or nothing where one stands beside a space or splits a number."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        goes = joined or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def without_articles(text: str) -> str:
    """Returns lower case words with numbers as digits, contractions with apostrophes, and no articles."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def flat(text: str) -> str:
    """Returns a text on one line."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def spelled(text: str) -> str:
    """Returns an answer as EvalAI's processor spells it."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return without_articles(without_punctuation(flat(words)))


def plainly_spelled(text: str) -> str:
    """Returns an answer as VQA's own evaluation spells it."""
    return without_articles(without_punctuation(flat(text)))


def agreement(answer: str, people: Sequence[str]) -> float:
    """Returns the mean, over the people left out, of min(1, those of the others who said the same / 3)."""
    same = [answer == said for said in people]
    others = [sum(same) - here for here in same]
    return sum(min(1.0, count / ENOUGH) for count in others) / len(people)


def _text_vqa(prediction: str, item: Item) -> Verdict:
    answer = spelled(prediction)
    return Verdict(agreement(answer, [spelled(said) for said in _several(item)]), answer or None)


def _vqa(prediction: str, item: Item) -> Verdict:
    answer = plainly_spelled(prediction)
    return Verdict(agreement(answer, [plainly_spelled(said) for said in _several(item)]), answer or None)


def _a_okvqa(prediction: str, item: Item) -> Verdict:
    count = sum(prediction == said for said in item.answers)
    return Verdict(min(1.0, count / ENOUGH), prediction.strip() or None)


def _several(item: Item) -> Sequence[str]:
    if len(item.answers) < 2:
        raise ValueError(f"question {item.id!r} has one answer, VQA accuracy leaves one out of ten; use metric: exact")
    return item.answers


TEXT_VQA = MeanMetric("vqa", _text_vqa)
"""TextVQA, VizWiz and what else LLaVA scores by EvalAI's processor."""
VQA_V2 = MeanMetric("vqa_v2", _vqa)
"""VQAv2 and OK-VQA by VQA's own evaluation."""
A_OKVQA = MeanMetric("a_okvqa", _a_okvqa)
"""A-OKVQA's direct answers: the very words, nobody left out."""
