"""`mmmoe data route`: shards with routing labels, made as MoVA's paper does: a model an expert, held against a base.

Expert j is marked where the loss of its model is below the base's (arXiv 2404.13046, section 3.2). Losses are kept in
the cache, so what was stopped goes on, and processes divide samples and shards without talking.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from mmmoe import dist, env, paths
from mmmoe.data.dataset import Source
from mmmoe.data.index import write_atomically
from mmmoe.data.routing_prompt import MOST
from mmmoe.data.routing_shards import Label, count_labels, labels_of, write_labelled
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.shard_file import refuse_strangers
from mmmoe.data.shards import ShardSet
from mmmoe.engine.spec import EngineSpec
from mmmoe.log import console, logger
from mmmoe.models.build import build_model
from mmmoe.models.spec import MoVASpec
from mmmoe.models.weights import base_fingerprint
from mmmoe.stages.cache import tokenizers_of
from mmmoe.stages.draw import transforms_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.heartbeat import heartbeat
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.image_routing import LOSSES, built_columns, is_missing, judge_dataset, judge_key
from mmmoe.stages.judging import Judged, fill
from mmmoe.stages.ledger import SPEC_FILE, RunFolder
from mmmoe.stages.spec import RunSpec

ORDER_FILE = "routing.json"
"""Beside the labelled shards: which expert each place of `routing_weights` means, and what came out."""
USAGE = "mmmoe data route SHARDS OUT BASE EXPERT=FINAL ..., or mmmoe data route SHARDS OUT FINAL of a MoVA"

Counts = Mapping[str, Counter[str | int]]


@dataclass(frozen=True)
class Judges:
    """Who says which experts help."""

    base: Path
    """A finished stage: the model without experts, or a MoVA whose own experts are meant."""
    experts: Mapping[str, Path]
    """By expert the finished stage of its model; empty for a MoVA."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> Judges:
        """Returns the judges of a command line.

        Raises:
            ValueError: They are not named as in the usage, or are no finished stages.
        """
        named = [re.fullmatch(r"([a-z0-9_]+)=(.+)", word) for word in words[1:]]
        if not words or not all(named):
            raise ValueError(f"expected {USAGE}; an expert's name has small letters, digits and _")
        pairs = [(match[1], match[2]) for match in named if match]
        experts = {name: _finished(path) for name, path in pairs}
        if len(experts) != len(pairs):
            raise ValueError(f"experts need names that differ, got {', '.join(name for name, _ in pairs)}")
        return cls(_finished(words[0]), experts)


def route(shards: str, out: Path, words: Sequence[str]) -> None:
    """Labels shards and prints what came out; collective.

    Raises:
        ValueError: The judges do not fit, or `out` is no place for shards.
    """
    judges, opened = Judges.parse(words), ShardSet(shards)
    _check_out(opened, out)
    dist.start()
    try:
        with heartbeat(EngineSpec().deadline_s, f"mmmoe data route {shards} {out} ..."):
            _label(judges, opened, out)
    finally:
        dist.stop()


def _label(judges: Judges, opened: ShardSet, out: Path) -> None:
    experts, columns = _columns(judges, opened)
    meant = _meaning(judges, experts, opened)
    _refuse_other_labels(out, meant)
    dist.barrier()
    if env.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / ORDER_FILE, meant)  # before the first shard, so that a stopped labelling is known again
    dist.barrier()
    counts, kept = _write(opened, columns, experts, out)
    if env.rank() == 0:
        _write_json(out / ORDER_FILE, meant | {"counts": _by_name(counts, experts)})
        console.print(labels_table(f"routing labels in {out}", experts, counts))
        if kept:
            console.print(f"{kept} of {len(opened.shards)} shards stood there already")
    dist.barrier()


def labels_table(title: str, experts: Sequence[str], counts: Counts) -> Table:
    """Returns by domain how many samples each expert is marked for, how many nobody, how many could not be told."""
    table = Table(title=title)
    table.add_column("domain")
    for name in ("samples", *experts, "none", "no image", "unreadable"):
        table.add_column(name, justify="right")
    keys = ("samples", *range(len(experts)), "none", "no image", "unreadable")
    for domain, found in sorted(counts.items()):
        table.add_row(Text(domain or "(no tag)"), *(f"{found[key]:,}" for key in keys))
    table.add_section()
    table.add_row("sum", *(f"{sum(found[key] for found in counts.values()):,}" for key in keys))
    return table


def _finished(word: str) -> Path:
    path = paths.resolve(word)
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{word} is no folder of a finished stage (<run>/stages/<stage>/final); {USAGE}")
    return path


def _check_out(shards: ShardSet, out: Path) -> None:
    names = [shard.path.name for shard in shards.shards]
    if len(set(names)) != len(names):
        raise ValueError("shards of several folders have the same names; label one folder after the other")
    if out.resolve() in {shard.path.resolve().parent for shard in shards.shards}:
        raise ValueError(f"{out} holds the shards that are read; name another folder for the labelled ones")
    refuse_strangers(out, [out / name for name in names])


def _columns(judges: Judges, shards: ShardSet) -> tuple[tuple[str, ...], list[SampleColumn]]:
    """Returns the experts' names and the losses of the base, then of each; computes what is missing."""
    source, cache = Source("shards", "", shards), _cache_of(judges.base)
    base = Heritage.read(judges.base)
    is_mova = isinstance(base.model, MoVASpec)
    if is_mova == bool(judges.experts):
        which = "has experts of its own: give it alone" if is_mova else "has no experts: name a finished stage for each"
        raise ValueError(f"{judges.base} {which}; {USAGE}")
    if isinstance(base.model, MoVASpec):
        transforms = transforms_of(build_model(base.model, base.seed, meta=True))
        return tuple(base.model.experts), built_columns(base, _named_base(base), [source], transforms, cache)[0]
    del base  # one model in memory at a time
    named = {"the base": judges.base, **{f"expert {name}": path for name, path in judges.experts.items()}}
    columns = [_column(name, path, source, cache) for name, path in named.items()]
    return tuple(judges.experts), columns


def _column(name: str, path: Path, source: Source, cache: Path) -> SampleColumn:
    """Returns the losses of one model, computed where they are missing."""
    judge = Heritage.read(path)
    if isinstance(judge.model, MoVASpec):
        raise ValueError(f"{path} ({name}) is a MoVA, whose answers depend on its own experts; give it alone; {USAGE}")
    transforms = transforms_of(build_model(judge.model, judge.seed, meta=True))
    column = SampleColumn(cache / LOSSES, judge_key(judge, _named_base(judge), transforms), source.shards)
    if is_missing([column]):
        del judge
        model, judge = rebuild(path)
        dataset = judge_dataset(judge, model, source, transforms, ())
        fill(model, [Judged(column, dataset)], f"losses of {name}")
        del model, judge, dataset
        if dist.device().type == "cuda":
            torch.cuda.empty_cache()
    return column


def _named_base(judge: Heritage) -> str:
    """Names a judge's parts by their files, so that no weight is read where no loss is missing, and its tokenizers."""
    return f"{[base_fingerprint(part) for part in judge.model.parts().values()]} {tokenizers_of(judge.model)}"


def _cache_of(final: Path) -> Path:
    """Returns the cache of the run that a finished stage lies in, the usual one where it lies elsewhere."""
    run = final.parent.parent.parent
    if (run / SPEC_FILE).is_file():
        return Path(RunFolder.open(run).spec().cache)
    return Path(RunSpec.model_fields["cache"].default)


def _write(shards: ShardSet, columns: Sequence[SampleColumn], experts: Sequence[str], out: Path) -> tuple[Counts, int]:
    """Writes this process's share of the shards; returns the counts of all, and how many shards stood already."""
    own: list[Label] = []
    kept = 0
    for number in range(env.rank(), len(shards.shards), env.world_size()):
        labels = labels_of(shards, number, columns)
        kept += write_labelled(shards, number, labels, out)
        own += labels
    silent = Counter(expert for label in own for expert in label.silent)
    total: dict[str, Counter[str | int]] = {}
    all_silent, all_kept = Counter[int](), 0
    for counts, quiet, found in _gathered(count_labels(own), silent, kept):
        all_kept += found
        all_silent += quiet
        for domain, of_domain in counts.items():
            total.setdefault(domain, Counter()).update(of_domain)
    for expert, count in sorted(all_silent.items()):
        logger().info("expert %s could not answer %d samples that the base could", experts[expert], count)
    return total, all_kept


def _gathered(counts: Counts, silent: Counter[int], kept: int) -> list[tuple[Counts, Counter[int], int]]:
    found = dist.gather_objects((counts, silent, kept))
    return [one for one in found if isinstance(one, tuple)]


def _meaning(judges: Judges, experts: Sequence[str], shards: ShardSet) -> dict[str, Any]:
    """Returns what stands beside the shards: what their labels mean, and whose they are."""
    return {
        "experts": list(experts),
        "most": MOST,
        "base": str(judges.base),
        "judges": {name: str(path) for name, path in judges.experts.items()},
        "labelled": shards.digest,
    }


def _refuse_other_labels(out: Path, meant: Mapping[str, Any]) -> None:
    """Refuses a folder whose shards are other ones: they would be overwritten.

    Raises:
        ValueError: It is such a folder.
    """
    file = out / ORDER_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    differ = [key for key in meant if before.get(key) != meant[key]]
    if differ and any(out.glob("*.tar")):
        said = f"its {ORDER_FILE} differs in {', '.join(differ)}" if before else f"it has no {ORDER_FILE}"
        raise ValueError(f"{out} holds other shards, or ones labelled otherwise ({said}); choose an empty folder")


def _by_name(counts: Counts, experts: Sequence[str]) -> dict[str, dict[str, int]]:
    def name(key: str | int) -> str:
        return experts[key] if isinstance(key, int) else key

    return {domain: {name(key): count for key, count in found.items()} for domain, found in counts.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
