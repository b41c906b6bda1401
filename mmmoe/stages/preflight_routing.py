"""What is wrong with how a run routes images to vision experts (MoVA), known before a weight is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from mmmoe import paths
from mmmoe.data.tokenizer import load_tokenizer
from mmmoe.models.folder import declared_config
from mmmoe.models.spec import MoVASpec
from mmmoe.models.towers.spec import BertTextSpec
from mmmoe.stages.spec import RunSpec, StageSpec


def problems_of_routing(run: RunSpec) -> Iterator[str]:
    """Yields what does not fit together, in words."""
    experts = list(run.model.experts) if isinstance(run.model, MoVASpec) else []
    for stage in run.stages:
        yield from (f"stages.{stage.name}.routing{text}" for text in _of_stage(run, stage))
    if isinstance(run.model, MoVASpec):
        yield from (f"model.text{text}" for text in _of_text(run.model.text))
    asked = run.evaluation.routing if run.evaluation is not None else "predicted"
    if isinstance(asked, list):
        yield from (f"evaluation.routing: {text}" for text in _unknown(asked, experts, "vision expert of the model"))


def _of_stage(run: RunSpec, stage: StageSpec) -> Iterator[str]:
    routing = stage.routing
    if routing is None:
        return
    if not isinstance(run.model, MoVASpec):
        yield f": {run.model.family} has no vision experts to route images to; leave it out, or take model.family mova"
        return
    sources = [source.name for source in stage.mixture.sources]
    yield from (f".conversations: {text}" for text in _unknown(routing.conversations, sources, "source of its mixture"))
    if routing.conversations and stage.template.kind == "plain":
        yield ".conversations: template plain leaves out what is asked; take vicuna_v1 or chat"
    judges = [other for other in run.stages if other.name == routing.judge]
    if routing.kind == "predicted" and judges and judges[0].template.kind == "plain":
        yield (
            f".judge: {routing.judge!r} has template plain, which leaves out what a routing pass asks; take a stage "
            "with vicuna_v1 or chat that has learned to route"
        )


def _of_text(text: BertTextSpec) -> Iterator[str]:
    """Compares the questions' tokenizer with the encoder that reads its ids."""
    if not text.tokenizer_folder:
        yield ".tokenizer: a BERT of a config alone has none; give the folder of one"
        return
    if text.tokenizer is None and not paths.resolve(text.tokenizer_folder).is_dir():
        return  # told with the weights
    try:
        tokenizer = load_tokenizer(paths.resolve(text.tokenizer_folder))
    except ValueError as error:
        yield f".tokenizer: {error}"
        return
    try:
        config = declared_config(text.path, text.config, "text", ("bert",))
    except ValueError:
        return  # told with the weights and the names of the model
    if tokenizer.pad_token_id != (config.pad_token_id or 0):
        yield (
            f".tokenizer: it fills rows up with id {tokenizer.pad_token_id}, but the BERT takes id "
            f"{config.pad_token_id or 0} for padding; let pad_token_id of one be the other's"
        )
    if len(tokenizer) > config.vocab_size:
        yield f".tokenizer: it has {len(tokenizer)} ids, the BERT {config.vocab_size}; take the tokenizer of this BERT"


def _unknown(asked: Iterable[str], known: Sequence[str], what: str) -> Iterator[str]:
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            yield f"{name!r} is no {what}; {hint}"
