"""What a cache holds, by size and last use, and how it is trimmed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mmmoe.data.feature_folders import read_folders
from mmmoe.data.feature_lease import in_use, locked
from mmmoe.evaluation.pictures import TABLE_MEDIA
from mmmoe.evaluation.responses import RESPONSES
from mmmoe.log import console
from mmmoe.stages.feature_budget import GB, day, gigabytes, what_of
from mmmoe.stages.image_routing import ANSWERS, LOSSES
from mmmoe.stages.spec import RunSpec

FEATURES, PICTURES, STAGES = "features", "pictures", "stages"
WHAT = {
    PICTURES: "media of evaluations",
    TABLE_MEDIA: "media that benchmarks' tables hold",
    RESPONSES: "answers of models",
    LOSSES: "losses of judges",
    ANSWERS: "experts that judges named",
}
"""What is in the folders of a part, where it is the same in all."""
ORDER = (FEATURES, PICTURES, TABLE_MEDIA, RESPONSES, LOSSES, ANSWERS, STAGES)
"""What goes first when a cache is trimmed: a tower makes features in hours what a stage makes in days."""
NAMES = {
    PICTURES: re.compile(r"[0-9a-f]{16}"),
    TABLE_MEDIA: re.compile(r"[0-9a-f]{2}"),
    RESPONSES: re.compile(r"[0-9a-f]{16}"),
    LOSSES: re.compile(r"[0-9a-f]{32}"),
    ANSWERS: re.compile(r"[0-9a-f]{32}"),
    STAGES: re.compile(r"[a-z0-9_]+-[0-9a-f]{16}(\.\d+\.partial)?"),
}
"""Names that a cache gives to folders; any other is somebody's own: a run and this project have `stages` as well."""


@dataclass(frozen=True)
class Kept:
    """A folder of a cache."""

    path: Path
    part: str
    """Which of the parts of a cache it belongs to."""
    what: str
    """What is in it; one line of the list for all folders that say the same."""
    row: str
    """Shape of an image's, video's or chunk's features, where that is known."""
    items: int
    """Images, videos or recordings, where that is known."""
    bytes: int
    used: float
    """Time of last use; of pictures, losses and answers of the last writing."""


def list_or_prune(words: Sequence[str]) -> None:
    """Does what `mmmoe cache [FOLDER] [prune GB]` asks.

    Raises:
        ValueError: It asks for something else.
    """
    given, left = list(words), None
    if given[-1:] == ["prune"]:
        raise ValueError("prune needs the gigabytes to leave, for example: mmmoe cache prune 20")
    if given[-2:-1] == ["prune"]:
        left = _number(given[-1])
        del given[-2:]
    if len(given) > 1:
        raise ValueError(f"expected mmmoe cache [FOLDER] [prune GB], got {' '.join(words)}")
    folder = Path(given[0] if given else RunSpec.model_fields["cache"].default)
    print_cache(folder) if left is None else prune(folder, left)


def content_of(cache: Path) -> list[Kept]:
    """Returns all folders of a cache, part by part, those not used for longest first.

    Raises:
        ValueError: There is no such folder, or it is none of a cache.
    """
    if not any((cache / part).is_dir() for part in ORDER):
        raise ValueError(f"{cache} holds none of {', '.join(ORDER)}: it is no cache; see `cache` in a configuration")
    found = [*_features(cache / FEATURES), *(kept for part in ORDER[1:] for kept in _folders(cache / part))]
    return sorted(found, key=lambda kept: (ORDER.index(kept.part), kept.used))


def print_cache(cache: Path) -> None:
    """Prints what a cache holds."""
    content = content_of(cache)
    table = Table("part", "what", "each", "folders", "items", "GB", "last used", title=f"cache {cache}")
    for column in table.columns[3:6]:
        column.justify = "right"
    for part in ORDER:
        here = [kept for kept in content if kept.part == part]
        for what in dict.fromkeys(kept.what for kept in here):
            same = [kept for kept in here if kept.what == what]
            _add(table, (part, what, ", ".join(sorted({kept.row for kept in same}))), same)
        if here:
            _add(table, (part, "sum", ""), here)
            table.add_section()
    _add(table, ("sum", "", ""), content)
    console.print(table)


def prune(cache: Path, gigabytes_left: float) -> None:
    """Deletes what was not used for longest until no more than so much is left, and says what went.

    Features go first, then pictures, what judges said, and stages; features that a run is using stay.

    Raises:
        ValueError: The folder is no cache.
    """
    content_of(cache)
    with locked(cache / FEATURES):
        held = in_use(cache / FEATURES)
        content = content_of(cache)
        left = sum(kept.bytes for kept in content)
        gone = []
        for kept in content:
            if left <= gigabytes_left * GB:
                break
            if kept.part == FEATURES and kept.path.name in held:
                continue
            shutil.rmtree(kept.path, ignore_errors=True)
            left -= kept.bytes
            gone.append(kept)
    for part in ORDER:
        for what in dict.fromkeys(kept.what for kept in gone if kept.part == part):
            same = [kept for kept in gone if (kept.part, kept.what) == (part, what)]
            size, used = gigabytes(sum(kept.bytes for kept in same)), day(max(kept.used for kept in same))
            console.print(f"deleted {part}: {what} ({size} GB, last used {used})", highlight=False, soft_wrap=True)
    over = "" if left <= gigabytes_left * GB else "; the rest are features that runs under way use"
    console.print(f"{cache}: {gigabytes(left)} GB are left{over}", highlight=False, soft_wrap=True)


def _number(text: str) -> float:
    try:
        left = float(text)
    except ValueError:
        left = -1.0
    if not left >= 0:
        raise ValueError(f"prune {text}: give the gigabytes to leave as a number, for example 20")
    return left


def _features(root: Path) -> Iterator[Kept]:
    for folder in read_folders(root):
        about = folder.about
        row, items = ("", 0) if about is None else (" x ".join(map(str, about.row)), about.items)
        yield Kept(folder.path, FEATURES, what_of(folder), row, items, folder.bytes, folder.used)


def _folders(root: Path) -> Iterator[Kept]:
    """Yields the folders of a part whose folders do not say what they are."""
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if not path.is_dir() or not NAMES[root.name].fullmatch(path.name):
            continue
        stats = [file.stat() for file in path.rglob("*") if file.is_file()]
        used = max((stat.st_mtime for stat in (path.stat(), *stats)), default=0.0)
        what = WHAT.get(root.name, path.name)
        yield Kept(path, root.name, what, "", 0, sum(stat.st_size for stat in stats), used)


def _add(table: Table, front: Sequence[str], kept: Sequence[Kept]) -> None:
    size, items = sum(one.bytes for one in kept), sum(one.items for one in kept)
    used = max((one.used for one in kept), default=0.0)
    numbers = (f"{len(kept)}", f"{items:,}" if items else "", gigabytes(size), day(used) if used else "")
    # Text, not str: a name's own brackets must not be read as markup.
    table.add_row(*(Text(cell) for cell in front), *numbers)
