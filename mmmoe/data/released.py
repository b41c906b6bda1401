"""LLaVA-1.5's own rule for labels, by counting tokens (llava/train/train.py, preprocess_v1), for exact comparison.

Each round (the text between end tokens) is tokenised alone; the count of its instruction, less two for the first token
and the lone space that "ASSISTANT: " leaves, is masked. If the counts do not add up to the dialogue's length, nothing
of it is a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmmoe.config.ids import IGNORE_ID
from mmmoe.data.tokenizer import Tokenizer

ANSWER_MARK = " ASSISTANT: "


def released_labels(
    text: str, ids: Sequence[int], tokenise: Callable[[str], list[int]], tokenizer: Tokenizer, max_length: int
) -> list[int]:
    """Returns the labels that LLaVA-1.5's code would give.

    Args:
        text: The rendered dialogue.
        ids: Its ids.
        tokenise: Text to ids, first token and images included.
        tokenizer: Its `legacy` flag says whether a round after an end token begins with a space of its own.
        max_length: A dialogue that reaches it is not checked.
    """
    labels = list(ids)
    labels[:1] = [IGNORE_ID] * len(labels[:1])
    place = 1
    # Without a space of its own a later round is one token shorter than when tokenised alone.
    shorter = 0 if getattr(tokenizer, "legacy", True) else 1
    for number, round_text in enumerate(text.split(str(tokenizer.eos_token))):
        parts = round_text.split(ANSWER_MARK)
        if len(parts) != 2:
            break
        less = shorter if number else 0
        instruction = len(tokenise(parts[0] + ANSWER_MARK)) - 2 - less
        labels[place : place + instruction] = [IGNORE_ID] * len(labels[place : place + instruction])
        place += len(tokenise(round_text)) - less
    labels[place:] = [IGNORE_ID] * len(labels[place:])
    length = sum(i != tokenizer.pad_token_id for i in ids)
    if place < max_length and place != length:
        return [IGNORE_ID] * len(ids)
    return labels
