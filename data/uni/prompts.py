"""Asterisk's telephone prompts: studio recordings of one English speaker, with exact transcripts."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preparation.chance import bucket

SPEAKER = "en_US_f_Allison"
LEAST = 400
"""Prompts that a version of the package must hold to be used."""
FREQUENT = 3
"""In how many training prompts a word must occur to be asked about."""
DULL = re.compile(
    "and|are|been|but|can|did|for|had|has|have|her|him|his|how|its|not|now|off|our|out|she|that|the|their|them|then|"
    "there|they|this|too|was|were|what|when|which|who|will|with|you|your"
)
"""Words that carry too little sound or sense to be asked about, besides those of one or two letters."""


@dataclass(frozen=True)
class Prompt:
    """One recording."""

    file: Path
    name: str
    text: str

    @property
    def words(self) -> tuple[str, ...]:
        """The words worth asking about, in the order they are said, each once."""
        found = re.findall(r"[a-z]+(?:'[a-z]+)?", self.text.lower())
        return tuple(dict.fromkeys(word for word in found if len(word) > 2 and not DULL.fullmatch(word)))

    @property
    def is_test(self) -> bool:
        """Tells the prompts that are never trained on: 1 transcript in 4."""
        return bucket("prompt", " ".join(re.findall(r"[a-z0-9']+", self.text.lower())), 4) == 0


def load_prompts(sounds: Path, transcripts: Path) -> list[Prompt]:
    """Reads both unpacked packages; tones, silences and prompts without a recording are left out.

    Raises:
        ValueError: They hold less than this preparation needs.
    """
    # Names in the list hold a folder: "digits/1".
    roots = sorted(sounds.rglob(SPEAKER))
    recordings = {
        path.relative_to(root).with_suffix("").as_posix(): path for root in roots for path in root.rglob("*.wav")
    }
    lists = sorted(transcripts.rglob("core-sounds-en.txt.gz"))
    prompts = []
    for line in gzip.decompress(lists[0].read_bytes()).decode("utf-8", "replace").splitlines() if lists else []:
        name, mark, text = line.partition(":")
        if mark and not line.startswith(";") and not re.search(r"[\[(<]", text) and name.strip() in recordings:
            prompts.append(Prompt(recordings[name.strip()], name.strip(), text.strip()))
    if len(prompts) < LEAST:
        raise ValueError(
            f"{sounds} and {transcripts} hold {len(prompts)} prompts with transcripts, at least {LEAST} are needed; "
            "delete both folders and their .deb files, and take Debian 12's packages"
        )
    return prompts


def word_counts(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Returns the words that are asked about, with the number of training prompts that hold them."""
    counts = Counter(word for prompt in prompts if not prompt.is_test for word in prompt.words)
    return {word: count for word, count in sorted(counts.items()) if count >= FREQUENT}
