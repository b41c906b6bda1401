"""How well a text is written: edit distance, exact and contained answers, as TextHarmony's evaluation counts them.

Its evaluation is of two kinds: what a judge reads in a drawn image (arXiv 2407.16364, table 3), and answers in words
(tables 1 and 2), where its "accuracy" is whether the answer contains the right one.
"""

from __future__ import annotations

from collections.abc import Sequence


def filtered(text: str) -> str:
    """Returns the ASCII letters and digits of a text, in lower case: all that counts in a drawn image."""
    return "".join(letter for letter in text if letter.isascii() and letter.isalnum()).lower()


def edit_distance(a: str, b: str) -> int:
    """Returns the least number of letters to insert, delete or replace that makes one text of the other."""
    row = list(range(len(b) + 1))
    for place, letter in enumerate(a, start=1):
        before, row[0] = row[0], place
        for other, wanted in enumerate(b, start=1):
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, before + (letter != wanted))
    return row[-1]


def closeness(written: str, wanted: str) -> float:
    """Returns 1 - distance / (longer length + 1e-5) of two texts as `filtered`; their mean is the papers' NED.

    Two texts without a letter are alike.
    """
    ours, theirs = filtered(written), filtered(wanted)
    return 1.0 - edit_distance(ours, theirs) / (max(len(ours), len(theirs)) + 1e-5)


def is_same(written: str, wanted: str) -> bool:
    """Says whether two texts are the same as `filtered`; the share of them is the papers' sentence accuracy."""
    return filtered(written) == filtered(wanted)


def contains(prediction: str, references: Sequence[str]) -> bool:
    """Says whether an answer contains a right one, both stripped and in lower case.

    As released, periods go from the prediction alone, so a right answer with a period is never found. The measure
    favours long answers: compare it with itself only.
    """
    answer = prediction.strip().lower().replace(".", "")
    return any(reference.strip().lower() in answer for reference in references)
