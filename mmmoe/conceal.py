"""What must not be shown: passwords, keys of services and the like, known by the name before them or by their form."""

from __future__ import annotations

import re

HIDDEN = "***"
_STRONG = r"(?:api|access|secret|private|account|wandb)[_-]?key|passwords?|passwd|passphrase|secrets?|credentials?"
# Tokens of a language, such as pad_token, have names like a service's, and so have their files. A service's are long,
# and no words: letters and digits take turns, or a digit stands in what no mark divides.
_TURNS = r"[a-z]\d+[a-z]+\d|\d[a-z]+\d+[a-z]|(?<![a-z0-9])(?=[a-z0-9]{20})[a-z]*\d"
_MARKS = r"[a-z0-9_.~+/=-]"
_TOKEN, _LONG = r"(?:[a-z0-9]+[_-])*token", rf"(?={_MARKS}{{0,99}}?(?:{_TURNS})){_MARKS}{{20,}}"
_NAME = re.compile(rf"^(?:(?P<strong>(?:[a-z0-9]+[_-])*(?:{_STRONG}))|{_TOKEN})$", re.IGNORECASE)
# Whoever logs in by ssh gives a name alone. A password may hold a slash; what follows a host may be a port.
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?!git@|(?<=ssh://)[\w.-]+@)"
    r"(?:[^\s/@'\"]+|[^\s/@:\['\"]*:(?!\d+[/?#])[^\s@'\"]+)@",
    re.IGNORECASE,
)
_PASSES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}"
    rf"|AKIA[A-Z0-9]{{16}}|(?i:sk-(?=[a-z0-9_-]{{20}}){_LONG})|(?i:bearer\s+{_LONG}))"
)
_BEFORE_LONG = rf"(?=['\"]?\s*[=:]\s*['\"]?{_LONG})"
_END, _KEY = (rf"(?:{front}(?:{_STRONG})|{front}token{_BEFORE_LONG})" for front in ("", "(?:[a-z0-9]+[_-])*"))
_PAIRS = (
    # an override in quotes, which ends with them
    *(re.compile(rf"(?P<front>{mark}(?:[\w-]+\.)*{_KEY}=)(?P<value>[^{mark}]+)", re.IGNORECASE) for mark in ("'", '"')),
    # key=value, and anything quoted
    re.compile(
        rf"(?P<front>(?<![a-z0-9]){_END}(?:\s*=\s*|['\"]?\s*[=:]\s*(?=['\"])))"
        r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\",;}\])]+)",
        re.IGNORECASE,
    ),
    # a program's flag; a word after it that has no digit may be what a message says of it
    re.compile(
        rf"(?P<front>(?<!\w)--(?:[a-z0-9]+[_-])*(?:(?:{_STRONG})\s+(?=['\"]|\S*\d)|token\s+(?=['\"]?{_LONG})))"
        r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\",;)]+)",
        re.IGNORECASE,
    ),
    # YAML's key: value, as a line or in braces; elsewhere what follows a colon is what a message says of the key
    re.compile(rf"(?P<front>^[ \t]*(?:-[ \t]+)?{_KEY}:[ \t]+)(?P<value>[^\n]+)", re.IGNORECASE | re.MULTILINE),
    re.compile(rf"(?P<front>[{{,\[][ \t]*{_KEY}:[ \t]+)(?P<value>[^\s'\",;}}\])]+)", re.IGNORECASE),
)


def is_secret(name: str, value: object) -> bool:
    """Says whether a value must not be shown, by its key or its form."""
    if not isinstance(value, str) or not value:
        return False
    if _ADDRESS.search(value) or _PASSES.search(value):
        return True
    match = _NAME.match(name)
    return match is not None and (match["strong"] is not None or re.fullmatch(_LONG, value, re.IGNORECASE) is not None)


def conceal(text: str) -> str:
    """Returns a text for people with what must not be shown replaced by `***`."""
    text = _ADDRESS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _PASSES.sub(HIDDEN, text)
    for pair in _PAIRS:
        text = pair.sub(rf"\g<front>{HIDDEN}", text)
    return text
