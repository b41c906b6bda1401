"""Room for what a stage encodes: how much it needs, whether the limit and the disk allow it, what is deleted for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mmmoe import dist, env
from mmmoe.data.dataset import Source
from mmmoe.data.feature_folders import FolderState, mark_used, read_folders, remove, sweep
from mmmoe.data.feature_lease import Lease, in_use, locked
from mmmoe.data.feature_part import part_bytes
from mmmoe.data.media import KINDS
from mmmoe.log import console, logger
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.spec import RunSpec, StageSpec

GB = 10**9


@dataclass(frozen=True)
class ViewNeed:
    """What a stage keeps of one view of its media."""

    view: str
    tower: str
    row: tuple[int, ...]
    """Shape of the features of an image, a video or a chunk."""
    items: int
    there: int
    """Bytes on the disk."""
    folders: Mapping[Path, int]
    """Where it lies, with the bytes that each folder will have."""
    is_least: bool
    """Recordings have one chunk or more; how many is known when they are decoded."""

    @property
    def need(self) -> int:
        """Bytes of all of it."""
        return sum(self.folders.values())

    @property
    def missing(self) -> int:
        """Bytes to come."""
        return self.need - self.there


def make_room(run: RunSpec, stage: StageSpec, model: SplicedModel, sources: Sequence[Source]) -> None:
    """Sees that what the stage is about to encode has room, and holds its folders while it lasts; collective.

    Raises:
        ValueError: There is not enough room, whatever is deleted.
    """
    if not sources[0].features:
        return  # every tower trains
    refusal: tuple[str, int | None] | None = None
    if env.rank() == 0:
        needs = view_needs(model, sources)
        try:
            _make_room(run, model, sources, needs)
        except ValueError as error:
            refusal = f"stage {stage.name}: {error}", None
        except OSError as error:
            # Features that are all there may lie where nothing can be written; then nobody deletes them either.
            if any(need.missing for need in needs):
                refusal = f"stage {stage.name}: {error}", error.errno
        if refusal is None and any(need.missing for need in needs):
            console.print(needs_table(stage.name, needs))
    told = dist.as_on_first(refusal)
    if isinstance(told, tuple):
        text, number = told
        # A full disk and one that cannot be written end a run otherwise than a mistake does.
        raise ValueError(text) if number is None else OSError(number, text)


def view_needs(model: SplicedModel, sources: Sequence[Source]) -> list[ViewNeed]:
    """Returns what each view needs; features that two views or sources share count for the first."""
    counted: set[Path] = set()
    found = []
    for view, of_first in sources[0].features.items():
        row, items, there = _row(model, view), 0, 0
        folders: dict[Path, int] = {}
        for store in (source.features[view] for source in sources):
            for part in store.parts():
                path, count = store.path(part), part.stop - part.start
                items += count
                if path in counted:
                    continue
                counted.add(path)
                size = path.stat().st_size if path.is_file() else 0
                there += size
                folders[path.parent] = folders.get(path.parent, 0) + (size or part_bytes(count, row))
        is_least = KINDS[of_first.kind].is_chunked
        found.append(ViewNeed(view, model.tower_of(view).key, row, items, there, folders, is_least))
    return found


def needs_table(stage: str, needs: Sequence[ViewNeed]) -> Table:
    """Returns the need by view, for a person."""
    table = Table(title=f"stage {stage} keeps features of frozen towers (GB)")
    for column in ("view", "tower", "items", "each", "needs", "there already", "missing"):
        table.add_column(column, justify="left" if column in ("view", "tower") else "right")
    for need in needs:
        least = "at least " if need.is_least and need.missing else ""
        sizes = (f"{least}{gigabytes(need.need)}", gigabytes(need.there), f"{least}{gigabytes(need.missing)}")
        table.add_row(need.view, need.tower, f"{need.items:,}", " x ".join(map(str, need.row)), *sizes)
    table.add_section()
    sums = [sum(getattr(need, part) for need in needs) for part in ("need", "there", "missing")]
    table.add_row("sum", "", f"{sum(need.items for need in needs):,}", "", *map(gigabytes, sums))
    return table


def _make_room(run: RunSpec, model: SplicedModel, sources: Sequence[Source], needs: Sequence[ViewNeed]) -> None:
    root = next(iter(sources[0].features.values())).folders[0].parent
    own = {folder: size for need in needs for folder, size in need.folders.items()}
    with locked(root):
        others = in_use(root)
        for folder in own:
            if folder.name not in others:
                sweep(folder)
        limit = None if run.cache_limit_gb is None else run.cache_limit_gb * GB
        _delete(doomed(needs, read_folders(root), others, limit, shutil.disk_usage(root).free))
        lease = Lease(root, own)
        for source in sources:
            for view, store in source.features.items():
                store.lease = lease
                for shard in {part.shard for part in store.parts()}:
                    store.describe(shard, _row(model, view))
                    mark_used(store.folders[shard])


def doomed(
    needs: Sequence[ViewNeed],
    folders: Sequence[FolderState],
    others: Mapping[str, int],
    limit: float | None,
    free: int,
) -> list[FolderState]:
    """Returns the folders to delete, those not used for longest first.

    Args:
        needs: of the stage.
        folders: all that there are, in that order.
        others: names of those that other running processes use, with the bytes that each will have.
        limit: bytes of all features; None where nothing may be deleted.
        free: bytes on the disk.

    Raises:
        ValueError: That would not be enough; the text has the numbers and the choices.
    """
    own = {folder for need in needs for folder in need.folders}
    missing, need = sum(n.missing for n in needs), sum(n.need for n in needs)
    by_view = ", ".join(f"{n.view} {gigabytes(n.need)}" for n in needs)
    choices = "set encode_once: false in the stage (its towers then run in every epoch), or take fewer experts or data"
    if limit is not None and need > limit:
        raise ValueError(
            f"its features need {gigabytes(need)} GB ({by_view}), more than cache_limit_gb = {limit / GB:g}; raise "
            f"the limit, {choices}"
        )
    sizes = {folder.path.name: folder.bytes for folder in folders}
    coming = sum(max(0, size - sizes.get(name, 0)) for name, size in others.items())
    over_limit = 0.0 if limit is None else sum(sizes.values()) + coming + missing - limit
    over_disk = coming + missing - free
    found: list[FolderState] = []
    for folder in folders:
        if limit is None or max(over_limit, over_disk) <= 0:
            break
        if folder.path not in own and folder.path.name not in others:
            found.append(folder)
            over_limit, over_disk = over_limit - folder.bytes, over_disk - folder.bytes
    needed = f"{gigabytes(missing)} GB of features are missing ({by_view} in all)"
    if limit is not None and over_limit > 0:
        raise ValueError(
            f"{needed}, {gigabytes(over_limit)} GB more than cache_limit_gb = {limit / GB:g} leaves beside the "
            f"features of other runs under way; wait for those, raise the limit, {choices}"
        )
    if over_disk > 0:
        could = "" if limit is not None else ", `mmmoe cache prune GB` or set cache_limit_gb so that old features go,"
        raise ValueError(
            f"{needed}, {gigabytes(over_disk)} GB more than the disk has free; make room{could} or {choices}"
        )
    return found


def _delete(folders: Sequence[FolderState]) -> None:
    """Deletes folders and says of what they were."""
    kept: dict[str, list[FolderState]] = {}
    for folder in folders:
        remove(folder.path)
        kept.setdefault(what_of(folder), []).append(folder)
    for what, gone in kept.items():
        size, used = gigabytes(sum(one.bytes for one in gone)), day(max(one.used for one in gone))
        logger().info("to make room: deleted %s (%s GB of %d shards, last used %s)", what, size, len(gone), used)


def what_of(folder: FolderState) -> str:
    """Returns what a folder holds, for a person."""
    about = folder.about
    return "features of an older cache" if about is None else f"{about.kind} features of {about.tower}"


def day(seconds: float) -> str:
    """Returns a time for a person."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _row(model: SplicedModel, view: str) -> tuple[int, ...]:
    tower = model.tower_of(view)
    return (*((model.frames,) if view == "video" else ()), tower.num_tokens, tower.channels)


def gigabytes(size: float) -> str:
    """Returns gigabytes with three digits that count."""
    return f"{size / GB:.3g}" if size < 100 * GB else f"{size / GB:,.0f}"
