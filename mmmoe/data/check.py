"""Are the shards whole? Every byte is hashed, every dialogue parsed, every image, film and sound decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmmoe.data.index import file_sha256
from mmmoe.data.media import Item, compare_marks
from mmmoe.data.shards import Shard, ShardSet, find_shards
from mmmoe.data.sound import decode_sound
from mmmoe.data.transforms import decode
from mmmoe.data.video import decode_video

FRAMES = 8
"""Pictures of a film that are decoded, as many as a model takes by default."""
RATE = 16_000


@dataclass(frozen=True)
class Problem:
    """Something wrong with a shard, or with one sample of it."""

    shard: str
    key: str
    """Empty when the whole shard is meant."""
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    shards: int
    samples: int
    items: Mapping[str, int]
    """Items of media by kind."""
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_sound(self) -> bool:
        """Says that nothing is wrong."""
        return not self.problems


def check(
    shards: str | Path | ShardSet, *, workers: int = 1, on_shard: Callable[[str], None] = lambda name: None
) -> CheckReport:
    """Reads everything and returns all that is wrong.

    Args:
        shards: A folder, a tar, a glob, or an opened set.
        workers: Shards checked at once.
        on_shard: Told each shard's name when it is done, for a progress bar.

    Raises:
        ValueError: There are no shards.
    """
    tars = [s.path for s in shards.shards] if isinstance(shards, ShardSet) else find_shards(shards)

    def one(tar: Path) -> CheckReport:
        report = _check_shard(tar)
        on_shard(tar.name)
        return report

    with ThreadPoolExecutor(workers) as pool:
        reports = list(pool.map(one, tars))
    return CheckReport(
        shards=len(reports),
        samples=sum(report.samples for report in reports),
        items=sum((Counter(report.items) for report in reports), Counter()),
        bytes=sum(report.bytes for report in reports),
        problems=tuple(problem for report in reports for problem in report.problems),
    )


def _check_shard(tar: Path) -> CheckReport:
    try:
        one = ShardSet(tar)
        shard = one.shards[0]
        actual = file_sha256(tar)
    except (ValueError, OSError) as error:
        return CheckReport(1, 0, {}, tar.stat().st_size if tar.exists() else 0, (Problem(tar.name, "", str(error)),))
    problems: list[Problem] = []
    if actual != shard.header.sha256:
        reason = f"content has SHA-256 {actual[:12]}, its index {shard.header.sha256[:12]}; copy or pack it again"
        problems.append(Problem(tar.name, "", reason))
    problems += [problem for index in range(len(one)) for problem in _check_sample(one, shard, index)]
    header = shard.header
    return CheckReport(1, header.count, header.items, header.bytes, tuple(problems))


def _check_sample(shards: ShardSet, shard: Shard, index: int) -> list[Problem]:
    key = f"#{index}"
    try:
        key = shards.entry(index).key
        record = shards.record(index)
        compare_marks((turn.text for turn in record.turns), {kind: len(items) for kind, items in record.media.items()})
        for kind, items in record.media.items():
            for item in items:
                _decode(kind, item)
    except ValueError as error:
        return [Problem(shard.path.name, key, str(error))]
    return []


def _decode(kind: str, item: Item) -> None:
    if not isinstance(item, bytes):
        for frame in item:
            decode(frame)
    elif kind == "image":
        decode(item)
    elif kind == "video":
        decode_video(item, FRAMES)
    else:
        decode_sound(item, RATE)
