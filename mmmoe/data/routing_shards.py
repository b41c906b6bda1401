"""Shards with routing labels: the same samples, `routing_weights` in the json of each."""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

from mmmoe.data.record import ROUTING_FIELD
from mmmoe.data.routing_labels import routing_of
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shard_file import finished, write_shard
from mmmoe.data.shards import ShardSet

Outcome = Literal["labelled", "no image", "unreadable"]


@dataclass(frozen=True)
class Label:
    """Which experts a sample gets."""

    routing: tuple[int, ...] | None
    """None where the sample is no dialogue: it stays as it is."""
    outcome: Outcome
    """unreadable: it is no dialogue, or the base could not answer it; then it gets no expert."""
    domain: str = ""
    silent: tuple[int, ...] = ()
    """Experts that could not answer it although the base could."""


def labels_of(shards: ShardSet, number: int, columns: Sequence[SampleColumn]) -> list[Label]:
    """Returns the labels of a shard's samples.

    Args:
        shards: the set.
        number: of the shard in it.
        columns: the losses of the base, then those of each expert, complete.
    """
    first = _first(shards, number)
    return [_label(shards, first + place, columns) for place in range(shards.shards[number].header.count)]


def count_labels(labels: Sequence[Label]) -> dict[str, Counter[str | int]]:
    """Returns by domain how many samples there are, how many of each outcome, of each expert (by number), of `none`."""
    counts: dict[str, Counter[str | int]] = {}
    for label in labels:
        marked = [expert for expert, bit in enumerate(label.routing or ()) if bit]
        none = ["none"] if label.outcome == "labelled" and not marked else []
        counts.setdefault(label.domain, Counter()).update(["samples", label.outcome, *none, *marked])
    return counts


def write_labelled(shards: ShardSet, number: int, labels: Sequence[Label], out: Path) -> bool:
    """Writes a shard again with its labels, under the same name; says whether it stood there already.

    Members keep their order, names, times and owners. A sample of a caption tar, whose text is `txt`, gets a json.
    """
    shard = shards.shards[number]
    made_of = json.dumps([shard.header.sha256, [label.routing for label in labels]])
    origin = hashlib.sha256(made_of.encode()).hexdigest()
    tar = out / shard.path.name
    if finished(tar, origin) is not None:
        return True
    replaced, added = _texts(shards, number, labels)
    write_shard(tar, origin, lambda stream: _copy(stream, shard.path, replaced, added))
    return False


def _first(shards: ShardSet, number: int) -> int:
    return sum(shard.header.count for shard in shards.shards[:number])


def _label(shards: ShardSet, index: int, columns: Sequence[SampleColumn]) -> Label:
    try:
        entry, record = shards.entry(index), shards.record(index, kinds=())
    except ValueError:
        return Label(None, "unreadable")
    nobody = (0,) * (len(columns) - 1)
    if "image" not in entry.kinds:
        return Label(nobody, "no image", record.domain)
    base, *experts = losses = [column.number(index) for column in columns]
    if not math.isfinite(base):
        return Label(nobody, "unreadable", record.domain)
    silent = tuple(number for number, loss in enumerate(experts) if not math.isfinite(loss))
    return Label(routing_of(losses), "labelled", record.domain, silent)


def _texts(
    shards: ShardSet, number: int, labels: Sequence[Label]
) -> tuple[dict[int, bytes], dict[int, tuple[str, bytes]]]:
    """Returns by offset the new content of members, and (name, content) of members to come behind others."""
    replaced: dict[int, bytes] = {}
    added: dict[int, tuple[str, bytes]] = {}
    shard, first = shards.shards[number], _first(shards, number)
    for place, label in enumerate(labels):
        if label.routing is None:
            continue
        entry = shard.entry(place)
        if "json" in entry.members:
            fields = json.loads(shard.read(entry, "json"))
            replaced[entry.members["json"][0]] = _dump(fields | {ROUTING_FIELD: list(label.routing)})
        else:
            turns = shards.record(first + place, kinds=()).turns
            said = [{"from": turn.role, "value": turn.text} for turn in turns]
            made = {"id": entry.key, "conversations": said, ROUTING_FIELD: list(label.routing)}
            last = max(offset for offset, _ in entry.members.values())
            added[last] = (f"{entry.key}.json", _dump(made))
    return replaced, added


def _dump(fields: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, which JSON can say and UTF-8 cannot, becomes the escape it was.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _copy(stream: IO[bytes], tar: Path, replaced: Mapping[int, bytes], added: Mapping[int, tuple[str, bytes]]) -> None:
    with tarfile.open(tar, "r:") as old, tarfile.open(fileobj=stream, mode="w") as new:
        for info in old:
            content = replaced.get(info.offset_data) if info.isreg() else None
            if content is None:
                new.addfile(info, old.extractfile(info) if info.isreg() else None)
            else:
                _add(new, info, info.name, content)
            if info.isreg() and info.offset_data in added:
                _add(new, info, *added[info.offset_data])


def _add(new: tarfile.TarFile, like: tarfile.TarInfo, name: str, content: bytes) -> None:
    """Adds a member with another one's time and owner."""
    info = copy(like)
    info.name, info.size = name, len(content)
    info.pax_headers = {key: value for key, value in like.pax_headers.items() if key not in ("path", "size")}
    new.addfile(info, BytesIO(content))
