"""A finished stage kept under a hash of all it depends on, so that the next run need not train it again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mmmoe import dist, paths
from mmmoe.data.shards import ShardSet
from mmmoe.engine.checkpoint import read
from mmmoe.log import logger
from mmmoe.models.language import tokenizer_folder
from mmmoe.stages.handover import Heritage
from mmmoe.stages.spec import RunSpec, StageSpec

_FORMAT = 1
"""Raised when what a stage computes changes, so that older results are not taken."""


class StageCache:
    """The place of one stage's result. World size, engine and checkpoint rhythm change it within rounding only."""

    def __init__(self, run: RunSpec, stage: StageSpec, heritage: Heritage | None) -> None:
        key = json.dumps(_dependencies(run, stage, heritage), sort_keys=True)
        self.path = Path(run.cache) / "stages" / f"{stage.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def fetch(self, final: Path) -> bool:
        """Puts the kept result at `final`; says whether there was a sound one."""
        found = False
        if dist.rank() == 0 and self.path.is_dir():
            try:
                read(self.path)
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(self.path, final, dirs_exist_ok=True)
                found = True
            except ValueError as error:
                logger().warning("the kept result %s is damaged and will be made anew: %s", self.path, error)
        return bool(dist.gather_objects(found)[0])

    def store(self, final: Path) -> None:
        """Keeps a finished stage's folder."""
        if dist.rank() != 0:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        shutil.copytree(final, partial)
        shutil.rmtree(self.path, ignore_errors=True)
        partial.rename(self.path)


def _dependencies(run: RunSpec, stage: StageSpec, heritage: Heritage | None) -> dict[str, Any]:
    declared = stage.model_dump(mode="json", exclude={"reuse", "init_from"})
    declared["training"].pop("checkpoint")
    declared["training"].pop("micro_batch")
    parent = (heritage.path / "manifest.json").read_bytes() if heritage else b""
    tokenizer = paths.resolve(tokenizer_folder(run.model))
    return {
        "format": _FORMAT,
        "seed": run.seed,
        "model": run.model.model_dump(mode="json"),
        "stage": declared,
        "precision": run.engine.precision,
        "data": [ShardSet(paths.resolve(source.shards)).digest for source in stage.mixture.sources],
        "tokenizer": _digest(tokenizer / "tokenizer.json"),
        "parent": hashlib.sha256(parent).hexdigest(),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
