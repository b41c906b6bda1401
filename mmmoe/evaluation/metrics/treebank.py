"""Tokens of captions, near to the Stanford Penn Treebank tokenizer that caption scores are defined on.

Words in lower case, punctuation dropped. It covers what captions are made of: contractions, abbreviations, numbers,
hyphens, brackets, quotes, money, ends of sentences. Not covered are entities, smileys and mark-up. As in the original,
captions are read as the lines of one text: what a period is may depend on how the next caption begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
"""What pycocoevalcap drops. Its list has round and curly brackets in capitals, so those of small letters stay."""
_LETTERS = str.maketrans({
    "£": "#", "€": "$", "¢": " cents ", "…": " ... ", "–": "--", "—": "--", "\u2018": "'", "\u2019": "'", "\u201c": '"',
    "\u201d": '"', "½": "1/2", "¼": "1/4", "¾": "3/4", "\u00a0": " ",
})  # fmt: skip
"""Marks that are written otherwise in the Treebank."""
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PARTED = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "lemme": "lem me",
           "gimme": "gim me", "'tis": "'t is", "'twas": "'t was", "y'all": "y' all"}  # fmt: skip
"""Words that are two tokens."""
_SHORT = """
    Adm Al Alex Apr Assn Aug Ave Blvd Bros Calif Capt Cf Cie Cmdr Co Col Corp Ct Dec Dept Dr Est Etc Feb Fri Ft Gen
    Gov Hon Inc Jan Jos Jr Jul Jun Lt Ltd Maj Mar Messrs Mme Mon Mr Mrs Ms Mt Nov Oct Penn Ph Pres Prof Pty Pvt Rd
    Rep Rev Sen Sep Sept Sgt Sq Sr St Thu Thurs Tue Tues Univ Vs Wed Wm
"""
"""Abbreviations, which keep their period."""
_OPENERS = r"""
    About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More Mr\. Ms\. Now
    Once One Other Our She Since So Some Such That The Their Then There These They This We When While What Yet You
"""
"""Words before which, with blanks on both sides, a lone letter's period was the end of a sentence."""
_KEPT = "|".join(f"[{word[0]}{word[0].lower()}]{word[1:]}" for word in _SHORT.split())
_NUMBER = r"(?:\d+(?:[.,:/-]\d+)*|\.\d+)"
_WORD = r"[^\W_]+(?:[-_.&/][^\W_]+|'(?!(?i:s|m|d|re|ve|ll|t)\b)[^\W\d_]+)*"
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)\S+ | [\w.+-]+@[\w-]+(?:\.\w+)+     # addresses
  | (?:{_KEPT})\.(?!\w)                                    # abbreviations
  | (?:no|nos|ca|fig|op|pp|No|Nos|Ca|Fig|Op|Pp)\.(?=\s?\d)
  | [A-Za-z]{{1,2}}(?:\.[A-Za-z])+\.(?!\w)                       # letters with periods
  | [A-Za-z]\.(?!\s+(?:{"|".join(_OPENERS.split())})\s|\w)
  | [^\W_]+(?:[&-][^\W_]+)*\.(?=[,;:])                     # a period amid a sentence is an abbreviation's
  | '(?:\d\ds?|n'|tis\b|twas\b)                            # the '90s, rock 'n' roll
  | '(?i:s|m|d|re|ve|ll)\b | (?i:n't)\b                          # the second half of contractions
  | \d+[ ]\d/\d+                                           # five and a half is one token
  | (?<![\w.])[+-]{_NUMBER}(?![\w-])
  | {_NUMBER}(?![\w-]|[.&/]\w)
  | [#@](?=[A-Za-z])\w+ | C\+\+ | C\#
  | [A-Za-z]+(?=(?i:n't)\b)                                     # their first half
  | [Yy]'all\b | {_WORD}
  | [?!]+ | \#+ | \*+ | \.+ | -+ | _+ | '+ | \S | \n
    """,
    re.VERBOSE,
)


def tokens(captions: Sequence[str]) -> list[str]:
    """Returns the tokens of each caption, parted by spaces; the captions stand one behind the other in a file."""
    lines: list[list[str]] = [[]]
    for token in _TOKEN.findall("\n".join(" ".join(text.splitlines()) for text in captions).translate(_LETTERS)):
        if token == "\n":
            lines.append([])
        elif (written := _written(token)) and written not in DROPPED:
            lines[-1].append(written)
    return [" ".join(line) for line in lines][: len(captions)]


def _written(token: str) -> str:
    """Returns a token as the Treebank writes it, nothing where it drops it."""
    if token[0] in ".-'\"" and not any(letter.isalnum() for letter in token):
        return ""
    if ord(token[0]) > 0xFFFF:  # emoji and what else is outside the basic plane
        return ""
    small = token.lower()
    return _BRACKETS.get(token) or _PARTED.get(small) or small
