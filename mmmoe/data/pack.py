"""LLaVA's JSON and a folder of media become shards: deterministic, resumable, each with its index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import webdataset

from mmmoe.data.index import Header
from mmmoe.data.rows import Row, raise_all, read_rows, unreadable
from mmmoe.data.shard_file import finished, refuse_strangers, write_shard
from mmmoe.log import logger


@dataclass(frozen=True)
class PackReport:
    """What a packing left in its folder."""

    shards: tuple[Path, ...]
    kept: int
    """Shards found finished from an earlier packing."""
    samples: int
    items: Mapping[str, int]
    """Items of media by kind."""
    bytes: int


def pack(
    json_path: str | Path,
    media_folder: str | Path,
    out_folder: str | Path,
    *,
    samples_per_shard: int,
    domain: str,
    workers: int = 1,
    voice: Literal["audio", "speech"] = "audio",
) -> PackReport:
    """Writes `shard-000000.tar`, ... and an index beside each.

    The same input gives the same bytes. A shard that an earlier packing of the same rows finished is kept, so a
    packing that was stopped goes on where it was.

    Args:
        json_path: LLaVA's JSON: a list of {id, conversations, image, video, speech, audio}; each of the four is a path,
            a list of paths, or absent; a video may also be a list of frame pictures.
        media_folder: What the paths are relative to.
        out_folder: Made if absent.
        samples_per_shard: Samples of every shard but the last.
        domain: Tag that each sample carries; expert load is split by it.
        workers: Shards written at once.
        voice: What Uni-MoE's field `voice` holds; with speech its `<audio>` marks become `<speech>`.

    Raises:
        ValueError: Rows are unusable (all of them are told, with the fix), or the folder holds other shards.
    """
    if samples_per_shard < 1 or workers < 1:
        raise ValueError(f"samples_per_shard ({samples_per_shard}) and workers ({workers}) must be at least 1")
    json_path, out_folder = Path(json_path), Path(out_folder)
    rows = read_rows(json_path, Path(media_folder), domain, voice)
    out_folder.mkdir(parents=True, exist_ok=True)
    plan = [
        (out_folder / f"shard-{n:06d}.tar", rows[start : start + samples_per_shard])
        for n, start in enumerate(range(0, len(rows), samples_per_shard))
    ]
    refuse_strangers(out_folder, [tar for tar, _ in plan])
    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(lambda task: _pack_shard(*task), plan))
    raise_all(json_path, [error for errors, _, _ in done for error in errors])
    headers = [header for _, header, _ in done if header is not None]
    report = PackReport(
        shards=tuple(tar for tar, _ in plan),
        kept=sum(was_kept for _, _, was_kept in done),
        samples=sum(header.count for header in headers),
        items=sum((Counter(header.items) for header in headers), Counter()),
        bytes=sum(header.bytes for header in headers),
    )
    logger().info("packed %d samples into %d shards at %s", report.samples, len(plan), out_folder)
    return report


def _pack_shard(tar: Path, rows: list[Row]) -> tuple[list[str], Header | None, bool]:
    """Returns (unusable rows, header of the shard, whether an earlier packing had finished it)."""
    origin = _fingerprint(rows)
    header = finished(tar, origin)
    if header is not None:
        return [], header, True
    errors = [f"row {row.number}: {reason}" for row in rows for reason in unreadable(row)]
    if errors:
        return errors, None, False
    return [], write_shard(tar, origin, lambda stream: _write_rows(stream, rows)), False


def _fingerprint(rows: list[Row]) -> str:
    """Hash of what a shard is packed from: keys, texts, names and sizes of the files."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.key.encode() + b"\0" + row.content + b"\0")
        for member, path in row.members():
            # As before there were other kinds, so that shards of images packed then still count as finished.
            what = path.name if member.count(".") == 1 else f"{member} {path.name}"
            digest.update(f"{what} {path.stat().st_size}\0".encode())
    return digest.hexdigest()


def _write_rows(stream: Any, rows: list[Row]) -> None:
    # Fixed time and owner: the same rows give the same bytes, wherever and whenever they are packed.
    writer = webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False)
    for row in rows:
        sample: dict[str, Any] = {"__key__": row.key, "json": row.content}
        sample |= {member: path.read_bytes() for member, path in row.members()}
        writer.write(sample)
    writer.close()
