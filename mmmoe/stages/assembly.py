"""Puts together what a stage takes from several finished stages: experts of a sparse block, connectors of their runs.

An expert is a finished stage that trained the feed-forward blocks and nothing else of the language model; its LoRA is
merged into the blocks (Uni-MoE, arXiv 2405.11273, section 3.3).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from mmmoe import paths
from mmmoe.engine.expert_groups import is_share
from mmmoe.engine.groups import nearest_names
from mmmoe.models.lora.spec import PROJECTIONS, LoRASpec
from mmmoe.models.moe.layer import SparseFFN, fill_expert
from mmmoe.models.moe.place import ExpertPlace
from mmmoe.models.moe.spec import BASE, MoESpec
from mmmoe.models.weights import base_fingerprint
from mmmoe.stages.heritage import Heritage, check_same_model
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec, StageSpec

LORA_A, LORA_B = "lora.a_ERD", "lora.b_EDR"


def sources_of(stage: StageSpec) -> list[str]:
    """Returns the stages and folders that a stage takes experts, connectors or labels from, besides where it starts."""
    judge = [stage.routing.judge] if stage.routing is not None and stage.routing.judge is not None else []
    experts = [name for spec in stage.adapters if isinstance(spec, MoESpec) for name in spec.experts if name != BASE]
    return list(dict.fromkeys([*experts, *stage.inherits.values(), *judge]))


def finished_stage(run: RunSpec, stage: StageSpec, name: str, folder: RunFolder) -> Path:
    """Returns the folder of a finished stage that a stage refers to.

    Raises:
        ValueError: when `name` is a later stage, or nothing that is finished.
    """
    names = [s.name for s in run.stages]
    if name in names:
        if names.index(name) >= names.index(stage.name):
            raise ValueError(
                f"stage {stage.name!r} starts from {name!r}, which comes after it; "
                f"put {name!r} first (the order is {', '.join(names)})"
            )
        return folder.final(name)
    path = paths.resolve(name)
    if not (path / "manifest.json").is_file():
        raise ValueError(
            f"stage {stage.name!r}: {name!r} is neither a stage of this run "
            f"({', '.join(names)}) nor the folder of a finished stage (<run>/stages/<stage>/final)"
        )
    return path


def read_parts(run: RunSpec, stage: StageSpec, folder: RunFolder, start: Heritage | None) -> dict[str, Heritage]:
    """Returns the finished stages that a stage takes parts of, by name.

    Raises:
        ValueError: when one is missing, belongs to another model, or to other base weights.
    """
    parts: dict[str, Heritage] = {}
    base = base_fingerprint(run.model.language)
    for name in sources_of(stage):
        heritage = Heritage.read(finished_stage(run, stage, name, folder))
        check_same_model(heritage, run.model)
        theirs = heritage.base or f"seed {heritage.seed}"
        ours = base or f"seed {(start or run).seed}"
        if theirs != ours:
            raise ValueError(
                f"{heritage.path} was trained on other base weights than "
                f"{start.path if start is not None else 'this run uses'} (fingerprints {theirs} and {ours}); train it "
                "anew from the base that the run uses"
            )
        parts[name] = heritage
    return parts


def digests(parts: Mapping[str, Heritage]) -> dict[str, str]:
    """Returns the checkpoint's digest of each part, for who must know whether one has changed."""
    return {name: part.checkpoint.digest for name, part in parts.items()}


def take_inherited(
    own: Mapping[str, Tensor], stage: StageSpec, parts: Mapping[str, Heritage], place: ExpertPlace
) -> dict[str, Tensor]:
    """Puts the tensors that `inherits` names into a model's own, and returns them whole by name.

    Raises:
        ValueError: when a pattern matches nothing that its stage trained, or a tensor does not fit.
    """
    taken: dict[str, Tensor] = {}
    for pattern, name in stage.inherits.items():
        tensors = parts[name].checkpoint.tensors
        found = {key: tensor for key, tensor in tensors.items() if fnmatchcase(key, pattern)}
        if not found:
            raise ValueError(
                f"stages.{stage.name}.inherits: {pattern!r} matches no tensor of {name!r}, "
                f"{nearest_names(pattern, list(tensors))}"
            )
        for key, whole in found.items():
            tensor = whole[place.own(len(whole))] if key in own and is_share(own[key]) else whole
            if key not in own or own[key].shape != tensor.shape:
                raise ValueError(f"stages.{stage.name}.inherits: {key} of {name!r} has no place in this stage's model")
            own[key].data.copy_(tensor)
        taken |= found
    return taken


@torch.no_grad()
def take_experts(
    model: nn.Module,
    dense: Mapping[str, Tensor],
    stage: StageSpec,
    parts: Mapping[str, Heritage],
    start: Heritage | None,
) -> None:
    """Fills the sparse blocks that the stage adds with its experts, merged.

    Args:
        model: with those blocks.
        dense: its tensors by canonical name as they were before.
        stage: the declaration.
        parts: finished stages by name.
        start: the one that the stage starts from.

    Raises:
        ValueError: when an expert's stage trained anything of the language model but these blocks, or not from here.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseFFN)}
    for spec in stage.adapters:
        if not isinstance(spec, MoESpec):
            continue
        sites = {name: layer for name, layer in layers.items() if layer.spec is spec}
        for number, name in enumerate(spec.experts):
            if name == BASE:
                continue
            _refuse_more_than_blocks(name, parts[name], start, stage)
            for site, layer in sites.items():
                fill_expert(layer, number, merged_projections(parts[name], site, dense))


def merged_projections(expert: Heritage, site: str, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a block's weights as the expert's stage left them, LoRA merged: W + s B A.

    Args:
        expert: the finished stage.
        site: name of the block.
        dense: the weights that it started from, by canonical name.
    """
    tensors, merged = expert.checkpoint.tensors, dict[str, Tensor]()
    for name in PROJECTIONS:
        root = f"{site}.{name}_proj"
        weight_OI = tensors.get(f"{root}.weight", dense[f"{root}.weight"])
        a_ERI, b_EOR = tensors.get(f"{root}.{LORA_A}"), tensors.get(f"{root}.{LORA_B}")
        if a_ERI is not None and b_EOR is not None:
            weight_OI = weight_OI.float() + _scale(expert, root) * (b_EOR[0].float() @ a_ERI[0].float())
        elif a_ERI is not None or b_EOR is not None:
            raise ValueError(f"{expert.path} holds half of the LoRA on {root}; its files were mixed up: train it anew")
        merged[name] = weight_OI
    return merged


def _scale(expert: Heritage, root: str) -> float:
    for spec in expert.adapters:
        if isinstance(spec, LoRASpec) and any(fnmatchcase(root, pattern) for pattern in spec.sites):
            return spec.scale
    raise ValueError(f"{expert.path} has a LoRA on {root}, but declares none; its files were mixed up: train it anew")


def _refuse_more_than_blocks(called: str, expert: Heritage, start: Heritage | None, stage: StageSpec) -> None:
    """Compares the rest of the language model with where this stage starts from, both ways."""
    before = start.checkpoint.tensors if start is not None else {}
    found = expert.checkpoint.tensors
    for name in sorted({*before, *found}):
        if not name.startswith("language.") or (name in found and _is_of_block(name)):
            continue
        if name not in found or name not in before or not torch.equal(before[name], found[name]):
            where = f"{start.path}" if start is not None else "the base weights"
            raise ValueError(
                f"stages.{stage.name}: expert {called!r} ({expert.path}) differs from {where} in {name}, "
                "which is no feed-forward block with plain LoRA; an expert's stage starts where this one does "
                "(init_from) and trains feed-forward blocks and connectors only"
            )


def _is_of_block(name: str) -> bool:
    parts = ("weight", LORA_A, LORA_B)
    return any(name.endswith(f".{projection}_proj.{part}") for projection in PROJECTIONS for part in parts)


def problems_of_sources(run: RunSpec, stage: StageSpec, seen: list[str]) -> Iterator[str]:
    """Yields what is wrong with the stages and folders that a stage takes parts from; folders are read."""
    names = [s.name for s in run.stages]
    for name in sources_of(stage):
        if name in names and name not in seen:
            yield f"takes parts of {name!r}, which comes later in this run; put it before"
        elif name not in names and not paths.resolve(name).is_dir():
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its stages are {', '.join(names)}"
            yield f"takes parts of {name!r}, which is no stage of this run and no folder; {hint}"
        elif name not in names:
            try:
                check_same_model(Heritage.read(paths.resolve(name)), run.model)
            except ValueError as error:
                yield f"takes parts of {name!r}, which is no stage of this run ({', '.join(names)}) and: {error}"
