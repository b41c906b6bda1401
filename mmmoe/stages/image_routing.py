"""Which vision experts look at which image: the guides of a MoVA's training, evaluation and label building."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmmoe import dist, paths
from mmmoe.config.ids import GLANCE_VIEW
from mmmoe.data.dataset import Dataset, Source
from mmmoe.data.prompt_template import PromptTemplate
from mmmoe.data.quarantine import Quarantine
from mmmoe.data.question_text import QuestionIds
from mmmoe.data.record import Record
from mmmoe.data.routed_images import Augmentation, Choice, RoutedImages, drawn, fixed
from mmmoe.data.routing_labels import routing_in, routing_of
from mmmoe.data.routing_prompt import one_where
from mmmoe.data.sample_column import SampleColumn
from mmmoe.data.template import Template, load_tokenizer
from mmmoe.data.transform import Transform
from mmmoe.evaluation.routing import ANSWER_TOKENS
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.spec import ModelSpec, MoVASpec
from mmmoe.models.spliced import SplicedModel
from mmmoe.models.towers.tower import TRAINED, Tower
from mmmoe.stages.cache import tokenizers_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.judging import Judged, experts_named_by, fill
from mmmoe.stages.spec import RoutingSpec, RunSpec, StageSpec

LOSSES = "routing_losses"
"""Folder of all losses in a cache."""
ANSWERS = "routing_answers"
"""Folder of the experts that judges named."""
UNREADABLE = 10**9
"""Samples a judge may find unreadable: they get no expert, and training sets them aside by its own budget."""


def guide_of(
    spec: ModelSpec, choice: Choice | None = None, conversations: Sequence[Augmentation | None] = ()
) -> RoutedImages | None:
    """Returns the guide of a model that routes images, None for other families."""
    if not isinstance(spec, MoVASpec):
        return None
    return RoutedImages(
        {name: expert.descriptions for name, expert in spec.experts.items()},
        QuestionIds(paths.resolve(spec.text.tokenizer_folder), spec.text.max_tokens),
        spec.instruction,
        spec.routing_rule,
        choice,
        conversations,
    )


def training_guide(
    run: RunSpec,
    stage: StageSpec,
    model: SplicedModel,
    sources: Sequence[Source],
    transforms: Mapping[str, Transform],
    parts: Mapping[str, Heritage],
) -> RoutedImages | None:
    """Returns the guide of a stage; collective when labels have to be built first.

    Raises:
        ValueError: The stage declares a routing that its model or mixture does not have.
    """
    if not isinstance(run.model, MoVASpec):
        return None
    routing = stage.routing or RoutingSpec()
    experts = len(run.model.experts)
    choice: Choice | None = None
    if routing.kind == "built":
        assert routing.judge is not None, "the spec asks for one"
        base = named_base(run.model, model)
        columns = built_columns(parts[routing.judge], base, sources, transforms, Path(run.cache))
        choice = _from_losses(columns, routing.most)
    elif routing.kind == "predicted":
        assert routing.judge is not None, "the spec asks for one"
        base = named_base(run.model, model)
        answers = named_columns(parts[routing.judge], base, sources, transforms, Path(run.cache))
        choice = _as_named(answers, experts, routing.most)
    elif routing.kind == "random":
        choice = drawn(experts, stage.mixture.seed, routing.most)
    elif routing.kind in ("none", "all"):
        choice = fixed("all" if routing.kind == "all" else "none", experts)
    named = {name: Augmentation(**spec.model_dump()) for name, spec in routing.conversations.items()}
    return guide_of(run.model, choice, [named.get(source.name) for source in sources])


def weights_of(model: SplicedModel) -> list[str]:
    """Returns what names the weights of a model's encoders, those of stages that trained them left out."""
    return [module.key.partition(TRAINED)[0] for module in model.modules() if isinstance(module, Tower)]


def built_columns(
    judge: Heritage,
    base: str,
    sources: Sequence[Source],
    transforms: Mapping[str, Transform],
    cache: Path,
) -> list[list[SampleColumn]]:
    """Returns for each source the losses of its samples without experts, then with each alone; fills in the missing.

    Args:
        judge: a finished stage of a MoVA.
        base: names the encoders that it started from, and tokenizers.
        sources: with the features of the views that are cached.
        transforms: of the views.
        cache: where losses are kept.
    """
    spec = judge.model
    assert isinstance(spec, MoVASpec)
    routings = [one_where(chosen, len(spec.experts)) for chosen in (set(), *({e} for e in range(len(spec.experts))))]
    key = judge_key(judge, base, transforms)
    columns = [
        [SampleColumn(cache / LOSSES, f"{key} {routing}", source.shards) for routing in routings] for source in sources
    ]
    model: SplicedModel | None = None
    for source, of_source in zip(sources, columns, strict=True):
        if not is_missing(of_source):
            continue
        model = model if model is not None else rebuild(judge.path)[0]
        judged = [
            Judged(column, judge_dataset(judge, model, source, transforms, routing))
            for column, routing in zip(of_source, routings, strict=True)
        ]
        fill(model, judged, f"routing labels of {source.name}")
    return columns


def named_columns(
    judge: Heritage,
    base: str,
    sources: Sequence[Source],
    transforms: Mapping[str, Transform],
    cache: Path,
) -> list[SampleColumn]:
    """Returns for each source the experts that a judge names for its samples, as an exam asks it; asks the missing.

    Args:
        judge: a finished stage of a MoVA that has learned to route.
        base: names the encoders that it started from, and tokenizers.
        sources: with the features of the views that are cached.
        transforms: of the views.
        cache: where answers are kept.
    """
    guide = guide_of(judge.model)
    assert guide is not None
    assert isinstance(judge.model, MoVASpec)
    said = [guide.prompt(""), judge.model.routing_rule, judge.template.model_dump_json(), ANSWER_TOKENS]
    key = f"{judge_key(judge, base, transforms)} {said}"
    columns = [SampleColumn(cache / ANSWERS, key, source.shards) for source in sources]
    model: SplicedModel | None = None
    for source, column in zip(sources, columns, strict=True):
        if not is_missing([column]):
            continue
        model = model if model is not None else rebuild(judge.path)[0]
        dataset = asked_dataset(judge, guide, model, source, transforms)
        ask = experts_named_by(guide, dataset.template)
        fill(model, [Judged(column, dataset, ask)], f"experts named for {source.name}")
    return columns


def asked_dataset(
    judge: Heritage, guide: RoutedImages, model: SplicedModel, source: Source, transforms: Mapping[str, Transform]
) -> Dataset:
    """Returns the routing passes about a source's samples."""
    tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(judge.model)))
    glance = model.positions(GLANCE_VIEW)
    return Dataset(
        [_as_seen_by(model, source)],
        PromptTemplate(judge.template, tokenizer, image=glance, longest=model.max_positions),
        transforms,
        Quarantine(None, UNREADABLE),
        guide=guide.asked,
    )


def named_base(spec: ModelSpec, model: SplicedModel) -> str:
    """Returns what names the encoders that a model started from, and its tokenizers."""
    return f"{weights_of(model)} {tokenizers_of(spec)}"


def judge_key(judge: Heritage, base: str, transforms: Mapping[str, Transform]) -> str:
    """Returns what names a judge's losses: all that they depend on besides the samples and the routing."""
    return f"{judge.checkpoint.digest} {judge.base} {base} {sorted(t.key for t in transforms.values())}"


def is_missing(columns: Sequence[SampleColumn]) -> bool:
    """Says whether numbers are missing; collective.

    Another run may fill them in at this moment, so the processes agree before one of them waits for the others.
    """
    return any(dist.gather_objects(any(column.missing() for column in columns)))


def judge_dataset(
    judge: Heritage,
    model: SplicedModel,
    source: Source,
    transforms: Mapping[str, Transform],
    routing: tuple[int, ...],
) -> Dataset:
    """Returns a source as a judge is asked it, with the same experts for every image if it has experts."""
    return Dataset(
        [_as_seen_by(model, source)],
        Template(judge.template, load_tokenizer(paths.resolve(tokenizer_folder(judge.model)))),
        transforms,
        Quarantine(None, UNREADABLE),
        max_positions=model.max_positions,
        positions={kind: model.positions(kind) for kind in model.kinds},
        guide=guide_of(judge.model, lambda record, at, index: routing),
    )


def _as_seen_by(model: SplicedModel, source: Source) -> Source:
    """Returns the source without kept features of a tower that another stage has trained on."""
    same = {
        view: store for view, store in source.features.items() if store.key.startswith(f"{model.tower_of(view).key} ")
    }
    return replace(source, features=same)


def _from_losses(columns: Sequence[Sequence[SampleColumn]], most: int) -> Choice:
    def choose(record: Record, source: int, index: int) -> Sequence[int]:
        return routing_of([column.number(index) for column in columns[source]], most)

    return choose


def _as_named(columns: Sequence[SampleColumn], num_experts: int, most: int) -> Choice:
    def choose(record: Record, source: int, index: int) -> Sequence[int]:
        return routing_in(columns[source].number(index), num_experts, most)

    return choose
