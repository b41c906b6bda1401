"""Tux Paint's stamps: photos with their names, the captions spoken in eight languages, and the sounds things make."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from demo.emoji import plain

LANGUAGES = {
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "el": "Greek",
    "es": "Spanish",
    "fr": "French",
    "ro": "Romanian",
    "ru": "Russian",
}
SOUND_KINDS = {
    "animals/birds": "bird",
    "animals/insects": "insect",
    "animals/mammals": "mammal",
    "hobbies/music": "instrument",
    "household": "household",
}
"""What kind of sound a folder's are; the sounds of other folders are asked for by name alone."""
MOST_WORDS = 3
"""Longest name: longer captions are sentences."""
LEAST = {"captions of each language": 400, "sounds": 60, "photos": 200}
"""What a version of the package must hold to be used."""
NOT_ITS_OWN = ("military", "hanukkah", "roadsigns", "flags")
"""Folders whose sounds are music for an occasion or speech, not the sound of the thing."""


@dataclass(frozen=True)
class SpokenCaption:
    """One caption as one person read it."""

    file: Path
    language: str
    english: str
    said: str
    """The text in that language, as far as the package has it."""


@dataclass(frozen=True)
class SoundEffect:
    """The sound of one thing."""

    file: Path
    name: str
    kind: str | None


@dataclass(frozen=True)
class Stamps:
    """What is read of the package."""

    captions: tuple[SpokenCaption, ...]
    sounds: tuple[SoundEffect, ...]
    photos: tuple[tuple[str, Path], ...]
    """(name, file)."""


def load_stamps(folder: Path) -> Stamps:
    """Reads the unpacked package.

    Raises:
        ValueError: It holds less than this preparation needs.
    """
    root = folder / "usr/share/tuxpaint/stamps"
    texts = {path.with_suffix(""): read_texts(path) for path in sorted(root.rglob("*.txt"))}
    captions = [
        SpokenCaption(file, name, text["en"], text.get(code, text["en"]))
        for stem, text in texts.items()
        for code, name in LANGUAGES.items()
        if (file := stem.with_name(f"{stem.name}_desc_{code}.ogg")).is_file()
    ]
    named = {stem: name for stem, text in texts.items() if (name := name_of(text["en"]))}
    named = {stem: name for stem, name in named.items() if stem.relative_to(root).parts[0] != "symbols"}
    photos = [(name, file) for stem, name in named.items() if (file := stem.with_name(f"{stem.name}.png")).is_file()]
    found = Stamps(tuple(captions), tuple(load_sounds(named, root)), tuple(photos))
    check(found, folder)
    return found


def load_sounds(named: dict[Path, str], root: Path) -> list[SoundEffect]:
    """Returns one sound a name; a recording that stands for several things is left out, for it names none of them."""
    files: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for stem, name in named.items():
        file = stem.with_name(f"{stem.name}.ogg")
        if file.is_file() and not set(NOT_ITS_OWN) & set(file.relative_to(root).parts):
            files[recording_digest(file.read_bytes())].append((file, name))
    effects: dict[str, SoundEffect] = {}
    for same in files.values():
        if len({name for _, name in same}) == 1:
            file, name = same[0]
            effects.setdefault(name, SoundEffect(file, name, kind_of(file.relative_to(root))))
    return [effects[name] for name in sorted(effects)]


def recording_digest(ogg: bytes) -> str:
    """Returns a hash of what an Ogg file holds without its page headers, which differ between copies of a recording."""
    held, place = hashlib.sha256(), 0
    while ogg[place : place + 4] == b"OggS":
        body = place + 27 + ogg[place + 26]
        place = body + sum(ogg[place + 27 : body])
        held.update(ogg[body:place])
    return held.hexdigest()


def kind_of(path: Path) -> str | None:
    """Returns what kind of sound a folder's are."""
    return next((kind for folder, kind in SOUND_KINDS.items() if path.as_posix().startswith(f"{folder}/")), None)


def read_texts(path: Path) -> dict[str, str]:
    """Returns a caption by language code: the first line is English, later lines say `fr.utf8=...`."""
    first, *rest = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in rest:
        code, mark, said = line.partition(".utf8=")
        if mark:
            texts[code.strip()] = said.strip()
    return texts


def name_of(caption: str) -> str:
    """Returns the bare name in a caption ("A red apple." gives "red apple"), or nothing where it is a sentence."""
    if re.search("[!—:“]", caption):
        return ""
    name = re.sub(r"^(an?|the|some) ", "", plain(re.sub(r"\(.*?\)", "", caption)).strip())
    return name if 0 < len(name.split()) <= MOST_WORDS and name[0].isalpha() else ""


def check(stamps: Stamps, folder: Path) -> None:
    """Refuses a version that holds too little."""
    fewest = min(sum(c.language == name for c in stamps.captions) for name in LANGUAGES.values())
    held = dict(zip(LEAST, (fewest, len(stamps.sounds), len(stamps.photos)), strict=True))
    short = {what: count for what, count in held.items() if count < LEAST[what]}
    if short:
        raise ValueError(
            f"{folder} holds too little: {short}, at least {LEAST} is needed; delete the folder and its .deb, "
            "and take Debian 12's tuxpaint-stamps-default"
        )
