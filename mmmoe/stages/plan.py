"""What a run would do, printed before it does it: stages, parameters from configuration alone, what is missing."""

from __future__ import annotations

from rich.table import Table

from mmmoe import env
from mmmoe.engine.groups import TrainableRow, freeze
from mmmoe.log import console
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.counts import parameter_table
from mmmoe.models.keys import canonical
from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.spec import ModelSpec
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.moe_sizes import sizes_table
from mmmoe.stages.preflight import problems
from mmmoe.stages.spec import RunSpec, StageSpec

GRID_EXPERTS, GRID_RANKS = (1, 2, 3), (16, 32, 128)
"""Settings of the paper's ablations, counted beside the run's own."""


def print_trainable(stage: StageSpec, rows: list[TrainableRow]) -> None:
    """Prints which parameters a stage trains, pattern by pattern (on the first process)."""
    if env.rank() != 0:
        return
    table = Table("pattern", "tensors", "parameters", "for example", title=f"stage {stage.name} trains")
    for row in rows:
        table.add_row(row.pattern, f"{len(row.names)}", f"{row.parameters:,}", row.names[0] if row.names else "-")
    table.add_section()
    table.add_row("sum", f"{sum(len(r.names) for r in rows)}", f"{sum(r.parameters for r in rows):,}", "")
    console.print(table)


def print_plan(spec: RunSpec) -> None:
    """Prints the plan of a run; no weight is read and no folder made."""
    missing = list(problems(spec))
    console.print(_stage_table(spec))
    for stage in spec.stages:
        console.print(_parameter_table(spec, stage))
        if any(isinstance(adapter, ExpertsSpec) and adapter.level == "block" for adapter in stage.adapters):
            console.print(_grid_table(spec.model, stage.adapters))
        for adapter in stage.adapters:
            if isinstance(adapter, MoESpec):
                console.print(sizes_table(spec.model, adapter))
    for line in missing:
        console.print(f"[yellow]missing[/yellow] {line}", highlight=False, soft_wrap=True)
    if not missing:
        console.print("nothing is missing: this can run")


def _stage_table(spec: RunSpec) -> Table:
    table = Table(
        "stage", "starts from", "steps", "batch", "micro batch", "peak lr", "template", "sources", title=spec.name
    )
    before = "base weights"
    for stage in spec.stages:
        training = stage.training
        epochs = f"{training.epochs:g} epochs" if training.epochs else "?"
        length = f"{training.steps}" if training.steps else epochs
        sources = ", ".join(f"{s.name} ({s.weight:g})" for s in stage.mixture.sources)
        start = stage.init_from or before
        row = (f"{training.batch}", f"{training.micro_batch}", f"{training.optimizer.lr:g}", stage.template.kind)
        table.add_row(stage.name, start, length, *row, sources)
        before = stage.name
    return table


def _parameter_table(spec: RunSpec, stage: StageSpec) -> Table:
    model = build_model(spec.model, 0, meta=True)
    add_adapters(model, adapters_in(spec, stage), 0)
    freeze(model, stage.trains, canonical)
    rows = parameter_table(model)
    table = Table("part", "parameters", "trainable", title=f"parameters in stage {stage.name}")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.part, f"{row.total:,}", f"{row.trainable:,}")
    table.add_section()
    table.add_row("sum", f"{sum(r.total for r in rows):,}", f"{sum(r.trainable for r in rows):,}")
    return table


def with_size(adapters: list[AdapterSpec], experts: int, rank: int) -> list[AdapterSpec]:
    """Returns the same adapters with another number of experts and rank; one expert is plain LoRA, without a router."""
    out: list[AdapterSpec] = []
    for adapter in adapters:
        if isinstance(adapter, ExpertsSpec) and experts == 1:
            is_linear = adapter.level == "linear"
            sites = (
                adapter.sites if is_linear else [f"{s}.{p}_proj" for s in adapter.sites for p in adapter.projections]
            )
            out.append(
                LoRASpec(sites=sites, rank=rank, alpha=adapter.alpha, dropout=adapter.dropout, rslora=adapter.rslora)
            )
        elif isinstance(adapter, ExpertsSpec):
            out.append(adapter.model_copy(update={"experts": experts, "rank": rank}))
        elif isinstance(adapter, LoRASpec):
            out.append(adapter.model_copy(update={"rank": rank}))
    return out


def _grid_table(spec: ModelSpec, adapters: list[AdapterSpec]) -> Table:
    table = Table("experts", "rank", "feed-forward experts", "attention LoRA", "routers", "sum", title="adapter sizes")
    for column in table.columns:
        column.justify = "right"
    least = max(adapter.num_chosen or 1 for adapter in adapters if isinstance(adapter, ExpertsSpec))
    for experts in (count for count in GRID_EXPERTS if count == 1 or count >= least):
        for rank in GRID_RANKS:
            counts = grid_row(spec, adapters, experts, rank)
            label = "1 (plain)" if experts == 1 else f"{experts}"
            table.add_row(label, f"{rank}", *(f"{count:,}" for count in counts), f"{sum(counts):,}")
    return table


def grid_row(spec: ModelSpec, adapters: list[AdapterSpec], experts: int, rank: int) -> tuple[int, int, int]:
    """Returns (feed-forward experts, attention LoRA, routers) of one setting."""
    model = build_model(spec, 0, meta=True)
    add_adapters(model, with_size(adapters, experts, rank), 0)
    found = [0, 0, 0]
    for name, parameter in model.named_parameters():
        if ".router." in name:
            found[2] += parameter.numel()
        elif ".lora." in name or ".experts." in name:
            found[0 if ".mlp." in name else 1] += parameter.numel()
    return found[0], found[1], found[2]
