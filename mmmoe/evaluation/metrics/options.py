"""Which option an answer names, by rule alone: what the rule does not understand is wrong, and nobody guesses."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from mmmoe.evaluation.metrics.exact import normalise
from mmmoe.evaluation.metrics.metric import Item, MeanMetric, Verdict

LETTERS = string.ascii_uppercase
REFUSED = "Z"
"""VLMEvalKit's letter for an answer that declines; never right."""
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
"""Sentences of models that decline, as VLMEvalKit lists them."""
NO_ANSWER = "Failed to obtain answer via API"
NEAR_END = 5
"""A lone letter counts among so many last words."""
SCIENCE_LETTERS = "ABCDE"
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_DECLARED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_SCIENCE = re.compile(r"The answer is ([A-Z]).")
_LEADING = re.compile(r"[\s(\[\"'*]*([A-Za-z])(?:[\s.,:;)\]\"'*]*$|\s?[.,:;)\]])")

Extract = Callable[[str, Sequence[str]], str | None]
"""From an answer and the texts of the options to a letter, None where it names none."""


def mmbench_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Returns the letter by VLMEvalKit's rules (vlmeval/utils/matching_util.py), without its judge model.

    In order: a refusal; the only letter, if it is among the last five words; "answer is B"; the only option whose text
    the answer holds, unless the answer is twice as long as all options.
    """
    return (None if NO_ANSWER in answer else _named(answer, choices)) or _quoted(answer, choices)


def _named(answer: str, choices: Sequence[str]) -> str | None:
    if any(refusal in answer for refusal in REFUSALS):
        return REFUSED
    words = answer.translate(_MARKS).split()
    present = [letter for letter in LETTERS[: len(choices)] if letter in words]
    if len(present) == 1 and words.index(present[0]) > len(words) - NEAR_END:
        return present[0]
    if not present and REFUSED in words:
        return REFUSED
    declared = _DECLARED.search(answer)
    letter = declared.group(1).upper() if declared else ""
    return letter if letter and letter in LETTERS[: len(choices)] else None


def _quoted(answer: str, choices: Sequence[str]) -> str | None:
    said = answer.lower()
    if len(said) > 2 * sum(map(len, choices)):
        return None
    held = [letter for letter, text in zip(LETTERS, choices, strict=False) if text.lower() in said]
    return held[0] if len(held) == 1 else None


def science_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Returns the letter by LLaVA's rules for ScienceQA (llava/eval/eval_science_qa.py).

    The letter alone, or with ". " behind it, or in the only "The answer is X" that something follows. It may name an
    option that the question does not have.
    """
    if answer in {*SCIENCE_LETTERS}:
        return answer
    if answer[1:3] == ". " and answer[0] in SCIENCE_LETTERS:
        return answer[0]
    found = _SCIENCE.findall(answer)
    return str(found[0]) if len(found) == 1 else None


def leading_letter(answer: str, choices: Sequence[str]) -> str | None:
    """Returns the letter that an answer is or begins with ("b", "B.", "(B) a dog"), or of the option it repeats."""
    found = _LEADING.match(answer)
    letter = found.group(1).upper() if found else ""
    if letter and letter in LETTERS[: len(choices)]:
        return letter
    said = normalise(answer)
    same = [name for name, text in zip(LETTERS, choices, strict=False) if said and normalise(text) == said]
    return same[0] if len(same) == 1 else None


def right_letter(item: Item) -> str:
    """Returns the letter of the right option, which is given as its text or its letter.

    Raises:
        ValueError: It is neither.
    """
    (answer, *_) = item.answers
    letters = LETTERS[: len(options(item))]
    if answer in item.choices:
        return letters[item.choices.index(answer)]
    if answer.strip().upper() in {*letters}:
        return answer.strip().upper()
    raise ValueError(f"question {item.id!r}: answer {answer!r} is neither an option nor a letter of {item.choices!r}")


def options(item: Item) -> Sequence[str]:
    """Returns the texts of an item's options; five empty ones where the benchmark does not give them."""
    return item.choices or ("",) * len(SCIENCE_LETTERS)


def letter_rule(extract: Extract) -> Callable[[str, Item], Verdict]:
    """Returns the rule that an answer is right when the letter extracted from it is."""

    def rule(prediction: str, item: Item) -> Verdict:
        letter = extract(prediction, options(item))
        return Verdict(float(letter == right_letter(item)), letter)

    return rule


OPTIONS = MeanMetric("options", letter_rule(mmbench_letter))
"""MMBench's extraction, each question by itself."""
SCIENCEQA = MeanMetric("scienceqa", letter_rule(science_letter))
LETTERS_ONLY = MeanMetric("letters", letter_rule(leading_letter))
"""SEED-Bench, AI2D, A-OKVQA's choices and others that are told to answer with the letter."""
