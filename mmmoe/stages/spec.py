"""What a run is: a model, its stages in order, an engine and an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec
from mmmoe.data.spec import MixtureSpec, TemplateSpec
from mmmoe.engine.spec import EngineSpec, TrainingSpec
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.spec import ModelSpec


class ConversationSpec(Spec):
    """How samples of a source become routing conversations: which experts does this question need?"""

    shuffle: bool = True
    """Draw the order of the experts, so that letters mean nothing by themselves."""
    truncate: bool = True
    """Offer only some of them, at least two."""
    paraphrase: bool = True
    """Draw one of each expert's descriptions; else the first."""


class RoutingSpec(Spec):
    """Which vision experts look at a stage's images (MoVA)."""

    kind: Literal["shards", "built", "predicted", "random", "none", "all"] = "shards"
    """shards: as `routing_weights` of each sample says; built: the experts that lower the loss of a finished stage's
    model; predicted: those that a finished stage's model names itself in a routing pass, as in an exam, so that a
    stage sees the routing it will meet; random: none to `most` of them, drawn sample by sample; none; all."""
    judge: str | None = None
    """The stage, or folder of a finished one, that is asked. built: for its loss with each expert alone and with none;
    predicted: for the experts, so one that has learned to route."""
    most: int = Field(default=3, ge=1)
    """Experts of an image at most; built keeps those of smallest loss, predicted the first letters."""
    conversations: dict[str, ConversationSpec] = {}
    """Sources of the mixture, by name, that ask for the routing instead of giving it."""

    @model_validator(mode="after")
    def _has_judge(self) -> RoutingSpec:
        if (self.judge is not None) != (self.kind in ("built", "predicted")):
            raise ValueError("built and predicted need a judge, a finished stage; the other kinds take none")
        return self


class LiveSpec(Spec):
    """Questions to the model while it trains."""

    every: int = Field(ge=1)
    """Steps from one exam to the next."""
    limit: int = Field(default=100, ge=1)
    """First so many questions of each benchmark."""
    benchmarks: list[str] | None = None
    """Names of benchmarks of the run's evaluation; null: all but drawings, which take too long."""


class StageSpec(Spec):
    """One stage: what it starts from, what trains, on what, for how long."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    adapters: list[AdapterSpec] = []
    """Adapters this stage adds; those of the stages it starts from stay."""
    trains: list[str] = Field(min_length=1)
    """Glob patterns over parameter names; one that matches nothing stops the run."""
    mixture: MixtureSpec
    template: TemplateSpec = TemplateSpec()
    training: TrainingSpec
    init_from: str | None = None
    """A stage of this run, or the folder of a finished stage of another; by default the stage before."""
    inherits: dict[str, str] = {}
    """Glob patterns over parameter names, and the stage (or folder of a finished one) whose tensors are taken in place
    of those of the stage it starts from: the connectors that expert runs trained."""
    encode_once: bool = False
    """Run the frozen towers once per image, video and sound, and keep their features on disk. A tower that the stage
    trains runs in every step; one of them at least must be frozen."""
    routing: RoutingSpec | None = None
    """Of a model with vision experts; null means RoutingSpec's own values."""
    evaluate: LiveSpec | None = None
    """Exams of the run's evaluation while the stage trains; they change nothing in what it learns."""
    reuse: bool = False
    """Keep the result in the cache and take it from there when nothing it depends on has changed."""


class RunSpec(Spec):
    """One file in configs/: everything `mmmoe run` does."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    seed: int = 0
    """Seeds fresh weights; data order and dropout have their own."""
    model: ModelSpec
    stages: list[StageSpec] = Field(min_length=1)
    engine: EngineSpec = EngineSpec()
    evaluation: EvaluationSpec | None = None
    runs: str = "runs"
    """Folder that run folders are made in."""
    cache: str = "data/local/cache"
    """Folder of encoded features and reused stages."""
    cache_limit_gb: float | None = Field(default=None, gt=0)
    """Most gigabytes (10^9 bytes) of encoded features in `cache`: before a stage encodes more, features that no run is
    using and that were not used for longest are deleted. null: nothing is ever deleted, the disk is the limit."""

    @model_validator(mode="after")
    def _names_differ(self) -> RunSpec:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        return self
