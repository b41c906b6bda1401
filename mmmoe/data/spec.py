"""What is read and how: sources, their mixture, the template that turns dialogues into ids and labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmmoe.config.spec import Spec


class SourceSpec(Spec):
    """One set of shards."""

    name: str
    """Name under which its loss is logged."""
    shards: str
    """Folder of indexed WebDataset tars (as `mmmoe data pack` writes them), or a glob."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the mixture; relative to the other sources' weights."""
    domain: str = "general"
    """Domain tag of samples that carry none (those of `mmmoe data pack` do); expert load is split by it."""


class MixtureSpec(Spec):
    """Sources and how often each is drawn. The order is a pure function of (seed, position)."""

    sources: list[SourceSpec] = Field(min_length=1)
    seed: int = 0
    batches: Literal["mixed", "pure"] = "mixed"
    """pure: no micro-batch holds samples of different combinations of modalities (text, image and text, ...), as
    Uni-MoE trains; a step has the same samples either way."""
    bad_samples: int = Field(default=100, ge=0)
    """How many unreadable samples are set aside (named in the quarantine file) before the run stops."""


class TemplateSpec(Spec):
    """How a dialogue becomes token ids and labels; only the assistant's answers are targets."""

    kind: Literal["vicuna_v1", "plain", "chat"] = "vicuna_v1"
    """vicuna_v1: LLaVA-1.5's; plain: image then caption; chat: the tokenizer's own chat template."""
    system: str | None = None
    """Replaces the template's system sentence; an empty string leaves it out."""
    max_length: int = Field(default=2048, ge=8)
    """Longest token sequence before images are spliced in; longer ones are cut on the right."""
    as_released: bool = False
    """vicuna_v1 only: also repeat what LLaVA-1.5's code does with dialogues it did not foresee: several images of one
    turn become one, and a dialogue whose lengths its bookkeeping miscounts has no targets at all."""
