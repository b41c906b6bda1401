"""A finished stage kept under a hash of all it depends on, so that the next run need not train it again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmmoe import dist, env, paths
from mmmoe.data.shards import ShardSet
from mmmoe.engine.checkpoint import read
from mmmoe.engine.spec import FaultsSpec
from mmmoe.log import logger
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.lora.spec import BalanceSpec, LoRASpec, SlideLoRASpec
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.spec import ModelSpec, MoVASpec, TextHarmonySpec
from mmmoe.models.weights import weight_files
from mmmoe.stages.assembly import digests
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.spec import RunSpec, StageSpec

TOKENIZER_FILES = (".json", ".model", ".txt", ".jinja")

_FORMAT = 1
"""Raised when what a stage computes changes, so that older results are not taken."""


class StageCache:
    """The place of one stage's result.

    The engine and the rhythm of checkpoints change it within rounding only; so does the number of processes, unless
    something depends on how a batch is cut up (dropout, a balance over the micro-batch).
    """

    def __init__(
        self, run: RunSpec, stage: StageSpec, heritage: Heritage | None, parts: Mapping[str, Heritage]
    ) -> None:
        key = json.dumps(_dependencies(run, stage, heritage) | {"parts": digests(parts)}, sort_keys=True)
        self.path = Path(run.cache) / "stages" / f"{stage.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def fetch(self, final: Path) -> bool:
        """Puts the kept result at `final`; says whether there was a sound one."""
        found = False
        if env.rank() == 0 and self.path.is_dir():
            try:
                read(self.path)
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(self.path, final, dirs_exist_ok=True)
                found = True
                with suppress(OSError):  # its time of last use; a cache may be read-only
                    os.utime(self.path)
            except (ValueError, OSError) as error:
                logger().warning("the kept result %s cannot be used and will be made anew: %s", self.path, error)
        return dist.as_on_first(found)

    def store(self, final: Path) -> None:
        """Keeps a finished stage's folder; where there is no room the run goes on without."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            shutil.copytree(final, partial)
            shutil.rmtree(self.path, ignore_errors=True)
            partial.rename(self.path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            logger().warning("the result of this stage could not be kept for other runs: %s", error)


def _dependencies(run: RunSpec, stage: StageSpec, heritage: Heritage | None) -> dict[str, Any]:
    declared = stage.model_dump(mode="json", exclude={"reuse", "init_from", "evaluate"})
    declared["training"].pop("checkpoint")
    if stage.training.faults == FaultsSpec():
        # Results of before there were rules against faults are those of a stage without any.
        declared["training"].pop("faults")
    world = env.world_size()
    dropout = max(getattr(part, "dropout", 0.0) for part in run.model.parts().values())
    # What is drawn in training gets its noise in the order of the micro-batches.
    draws = isinstance(run.model, TextHarmonySpec)
    is_cut = draws or _trains_text(run, stage) or any(_depends_on_cut(adapter) for adapter in adapters_in(run, stage))
    if dropout == 0 and not is_cut:
        declared["training"].pop("micro_batch")
        world = 0
    parent = (heritage.path / "manifest.json").read_bytes() if heritage else b""
    return {
        "format": _FORMAT,
        "seed": run.seed,
        "model": run.model.model_dump(mode="json"),
        "stage": declared,
        "precision": run.engine.precision,
        "world": world,
        "deepspeed": run.engine.deepspeed,
        "weights": _weights(run.model),
        "data": [ShardSet(paths.resolve(source.shards)).digest for source in stage.mixture.sources],
        "tokenizer": tokenizers_of(run.model),
        "parent": hashlib.sha256(parent).hexdigest(),
    }


def tokenizers_of(spec: ModelSpec) -> dict[str, str]:
    """Returns the digests of all files of a model's tokenizers, by name."""
    folders = {"": tokenizer_folder(spec)}
    if isinstance(spec, MoVASpec):
        folders["text/"] = spec.text.tokenizer_folder
    return {
        f"{place}{file.name}": _digest(file)
        for place, folder in folders.items()
        for file in sorted(paths.resolve(folder).glob("*"))
        if file.suffix in TOKENIZER_FILES
    }


def _trains_text(run: RunSpec, stage: StageSpec) -> bool:
    """Says whether MoVA's text encoder may train; it has dropout then, which each process draws for itself."""
    return isinstance(run.model, MoVASpec) and any(name.startswith(("text", "*", "?", "[")) for name in stage.trains)


def _depends_on_cut(adapter: AdapterSpec) -> bool:
    """Says whether the cut into micro-batches changes a result by more than rounding."""
    if isinstance(adapter, MoESpec):
        gate, dropout = adapter.gate, adapter.lora.dropout if adapter.lora else 0.0
        is_cut = gate.capacity_factor is not None or _is_balanced_by_cut(adapter.balance)
        return dropout > 0 or gate.jitter > 0 or is_cut
    if adapter.dropout > 0 or isinstance(adapter, LoRASpec | SlideLoRASpec):
        return adapter.dropout > 0
    return adapter.router.jitter > 0 or _is_balanced_by_cut(adapter.balance)


def _is_balanced_by_cut(balance: BalanceSpec) -> bool:
    return balance.kind != "none" and balance.over == "micro_batch"


def _weights(spec: ModelSpec) -> list[tuple[str, int, int]]:
    """Names the base weights' files by size and time: hashing gigabytes at every start would take minutes."""
    files = [file for part in (spec.language, *spec.parts().values()) for file in weight_files(part)]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
