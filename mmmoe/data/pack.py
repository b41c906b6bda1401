"""LLaVA's JSON and a folder of images become shards: deterministic, resumable, each with its index."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from mmmoe.data.index import (
    IMAGE_ENDINGS,
    Header,
    build_index,
    check_size,
    index_path,
    read_header,
    write_atomically,
)
from mmmoe.data.shards import IMAGE_MARK
from mmmoe.data.transforms import BROKEN
from mmmoe.log import logger

SHOWN_ERRORS = 20
ROLES = ("human", "gpt")


@dataclass(frozen=True)
class PackReport:
    """What a packing left in its folder."""

    shards: tuple[Path, ...]
    kept: int
    """Shards found finished from an earlier packing."""
    samples: int
    images: int
    bytes: int


@dataclass(frozen=True)
class _Row:
    number: int
    key: str
    content: bytes
    """The json member."""
    images: tuple[Path, ...]


def pack(
    json_path: str | Path,
    image_folder: str | Path,
    out_folder: str | Path,
    *,
    samples_per_shard: int,
    domain: str,
    workers: int = 1,
) -> PackReport:
    """Writes `shard-000000.tar`, ... and an index beside each.

    The same input gives the same bytes. A shard that an earlier packing of the same rows finished is kept, so a
    packing that was stopped goes on where it was.

    Args:
        json_path: LLaVA's JSON: a list of {id, image (a path, a list of paths, or absent), conversations}.
        image_folder: What the image paths are relative to.
        out_folder: Made if absent.
        samples_per_shard: Samples of every shard but the last.
        domain: Tag that each sample carries; expert load is split by it.
        workers: Shards written at once.

    Raises:
        ValueError: Rows are unusable (all of them are told, with the fix), or the folder holds other shards.
    """
    if samples_per_shard < 1 or workers < 1:
        raise ValueError(f"samples_per_shard ({samples_per_shard}) and workers ({workers}) must be at least 1")
    json_path, out_folder = Path(json_path), Path(out_folder)
    rows = _read_rows(json_path, Path(image_folder), domain)
    out_folder.mkdir(parents=True, exist_ok=True)
    plan = [
        (out_folder / f"shard-{n:06d}.tar", rows[start : start + samples_per_shard])
        for n, start in enumerate(range(0, len(rows), samples_per_shard))
    ]
    _refuse_strangers(out_folder, [tar for tar, _ in plan])
    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(lambda task: _pack_shard(*task), plan))
    _raise_all(json_path, [error for errors, _, _ in done for error in errors])
    headers = [header for _, header, _ in done if header is not None]
    report = PackReport(
        shards=tuple(tar for tar, _ in plan),
        kept=sum(was_kept for _, _, was_kept in done),
        samples=sum(header.count for header in headers),
        images=sum(header.images for header in headers),
        bytes=sum(header.bytes for header in headers),
    )
    logger().info("packed %d samples into %d shards at %s", report.samples, len(plan), out_folder)
    return report


def _read_rows(json_path: Path, image_folder: Path, domain: str) -> list[_Row]:
    """Returns the rows, or raises one error that tells all that is wrong with them."""
    try:
        raw = json.loads(json_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{json_path} does not exist; give LLaVA's JSON file") from error
    except ValueError as error:
        raise ValueError(f"{json_path} is not JSON ({error}); lines of JSON (JSONL) go into one list first") from error
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{json_path} must be a JSON list with at least one row, as LLaVA's files are")
    rows: list[_Row] = []
    errors: list[str] = []
    for number, row in enumerate(raw):
        try:
            rows.append(_read_row(number, row, image_folder, domain))
        except ValueError as error:
            errors.append(f"row {number}: {error}")
    _raise_all(json_path, errors)
    return rows


def _read_row(number: int, row: Any, image_folder: Path, domain: str) -> _Row:
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, make it an object with id and conversations")
    if "conversations" not in row:
        raise ValueError(f"has no conversations (fields: {sorted(row)}); add a list of from and value")
    turns = row["conversations"]
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError("conversations needs at least a human and a gpt turn; add them or drop the row")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in ROLES:
            raise ValueError(f"turn {turn!r:.80} needs from ({' or '.join(ROLES)}) and value (text)")
    spoken = [turn["from"] for turn in turns]
    if any(a == b for a, b in pairwise(spoken)) or "gpt" not in spoken[1:]:
        raise ValueError(f"turns are from {', '.join(spoken)}; let human and gpt take turns, and gpt answer")
    named = row.get("image")
    names: list[Any] = [] if named is None else named if isinstance(named, list) else [named]
    images = tuple(_image_file(name, image_folder) for name in names)
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise ValueError(f"has {marks} {IMAGE_MARK} in its text but {len(images)} images; make them match")
    identity = str(row.get("id", number))
    content = {"id": identity, "conversations": turns, "domain": domain}
    return _Row(
        number=number,
        # Published ids repeat (one picture, many dialogues) and may hold dots; the row number makes the key unique.
        key=f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]', '_', identity)[:60]}",
        content=json.dumps(content, ensure_ascii=False, sort_keys=True).encode(),
        images=images,
    )


def _image_file(name: Any, folder: Path) -> Path:
    if not isinstance(name, str):
        raise ValueError(f"image {name!r:.80} is not a path; give a path relative to the image folder")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"image {name!r} lies outside the image folder {folder}; move it inside")
    if path.suffix[1:].lower() not in IMAGE_ENDINGS:
        raise ValueError(f"image {name!r} does not end in one of {', '.join(sorted(IMAGE_ENDINGS))}; rename it")
    if not path.is_file():
        raise ValueError(f"image {path} does not exist; correct the path or the image folder")
    return path


def _raise_all(json_path: Path, errors: list[str]) -> None:
    if errors:
        shown = "\n  ".join(errors[:SHOWN_ERRORS])
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(f"{json_path} has {len(errors)} unusable rows:\n  {shown}{more}")


def _refuse_strangers(folder: Path, planned: list[Path]) -> None:
    strangers = sorted(set(folder.glob("*.tar")) - set(planned))
    if strangers:
        raise ValueError(
            f"{folder} holds {len(strangers)} shards of another packing ({strangers[0].name}, ...), which would be "
            "read as well; choose an empty folder or delete them"
        )


def _pack_shard(tar: Path, rows: list[_Row]) -> tuple[list[str], Header | None, bool]:
    """Returns (unusable rows, header of the shard, whether an earlier packing had finished it)."""
    origin = _fingerprint(rows)
    header = _finished(tar, origin)
    if header is not None:
        return [], header, True
    errors = [f"row {row.number}: {reason}" for row in rows for reason in _broken_images(row)]
    if errors:
        return errors, None, False
    index_path(tar).unlink(missing_ok=True)  # while it stands it vouches for the old tar
    _write(tar, lambda stream: _write_rows(stream, rows))
    index = build_index(tar, origin)
    write_atomically(index_path(tar), index)
    return [], read_header(tar, index), False


def _fingerprint(rows: list[_Row]) -> str:
    """Hash of what a shard is packed from: keys, texts, names and sizes of the images."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.key.encode() + b"\0" + row.content + b"\0")
        for path in row.images:
            digest.update(f"{path.name} {path.stat().st_size}\0".encode())
    return digest.hexdigest()


def _finished(tar: Path, origin: str) -> Header | None:
    if not tar.is_file() or not index_path(tar).is_file():
        return None
    try:
        header = read_header(tar, index_path(tar).read_bytes())
        check_size(tar, header)
    except ValueError as error:
        logger().warning("packing again: %s", error)
        return None
    return header if header.origin == origin else None


def _broken_images(row: _Row) -> Iterator[str]:
    for path in row.images:
        try:
            with Image.open(path) as image:
                image.verify()
        except (ValueError, *BROKEN) as error:
            yield f"image {path} cannot be read ({error}); replace it or drop the row"


def _write(tar: Path, fill: Callable[[Any], None]) -> None:
    temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(tar)
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(stream: Any, rows: list[_Row]) -> None:
    # Fixed time and owner: the same rows give the same bytes, wherever and whenever they are packed.
    writer = webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False)
    for row in rows:
        sample: dict[str, Any] = {"__key__": row.key, "json": row.content}
        for number, path in enumerate(row.images):
            sample[f"{number}.{path.suffix[1:].lower()}"] = path.read_bytes()
        writer.write(sample)
    writer.close()
