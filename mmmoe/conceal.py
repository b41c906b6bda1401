"""What must not be shown: passwords, keys of services and the like, known by the name before them or by their form."""

from __future__ import annotations

import re

HIDDEN = "***"
_STRONG = r"(?:api|access|secret|private|account)[_-]?key|password|passwd|passphrase|secret|credentials?"
# Tokens of a language, such as pad_token, have names like these; a service's are long and have no marks.
_TOKEN, _LONG = r"(?:[a-z0-9]+[_-])*token", r"[A-Za-z0-9_.~+/=-]{20,}"
_NAME = re.compile(rf"^(?:(?P<strong>(?:[a-z0-9]+[_-])*(?:{_STRONG}))|{_TOKEN})$", re.IGNORECASE)
_ADDRESS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE)
_PASSES = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b")
_BEFORE_LONG = rf"(?=['\"]?\s*[=:]\s*['\"]?{_LONG})"
_END, _KEY = (rf"(?:{front}(?:{_STRONG})|{front}token{_BEFORE_LONG})" for front in ("", "(?:[a-z0-9]+[_-])*"))
_PAIRS = (
    # key=value, and anything quoted
    re.compile(
        rf"(?P<front>(?<![a-z0-9]){_END}(?:\s*=\s*|['\"]?\s*[=:]\s*(?=['\"])))"
        r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\",;}\])]+)",
        re.IGNORECASE,
    ),
    # YAML's key: value, as a line or in braces; elsewhere what follows a colon is what a message says of the key
    re.compile(
        rf"(?P<front>(?:^|[{{,\[-])[ \t]*{_KEY}:[ \t]+)(?P<value>[^\s'\",;}}\])]+)", re.IGNORECASE | re.MULTILINE
    ),
)


def is_secret(name: str, value: object) -> bool:
    """Says whether a value must not be shown, by its key or its form."""
    if not isinstance(value, str) or not value:
        return False
    if _ADDRESS.search(value) or _PASSES.search(value):
        return True
    match = _NAME.match(name)
    return match is not None and (match["strong"] is not None or re.fullmatch(_LONG, value) is not None)


def conceal(text: str) -> str:
    """Returns a text for people with what must not be shown replaced by `***`."""
    text = _ADDRESS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _PASSES.sub(HIDDEN, text)
    for pair in _PAIRS:
        text = pair.sub(rf"\g<front>{HIDDEN}", text)
    return text
