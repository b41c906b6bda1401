"""What is measured: benchmarks as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec

RoutingMode = Literal["predicted", "labels", "random", "none", "all"] | list[str]


class BenchmarkSpec(Spec):
    """One list of questions in a JSON Lines file, and how its answers are judged."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names its rows and its answer file."""
    file: str
    """JSON Lines: id, question, answer, image, video, speech or audio, and choices where there are any."""
    kind: Literal["multiple_choice", "short_answer", "contained", "location", "drawing"]
    """multiple_choice: the choice with the highest log-likelihood; short_answer: greedy generation, exact match;
    contained: likewise, right if the answer holds the right one (TextHarmony's accuracy, which favours long answers);
    location: likewise, four numbers whose box overlaps the right one by half (Acc@0.5); drawing: the model draws, and a
    judge must read the answer on the picture."""
    domain: str = "general"
    max_new_tokens: int = Field(default=8, ge=1)
    """Longest generated answer."""


class ClipSpec(Spec):
    """A CLIP model that judges drawn pictures."""

    name: str
    """Of open_clip's configurations, for example ViT-B-32."""
    path: str
    """Its checkpoint, a local safetensors file."""


class DrawingSpec(Spec):
    """How pictures are drawn and judged."""

    judge: str
    """ONNX file of a recogniser of lines of text (PaddleOCR's form), which reads what was drawn."""
    clip: ClipSpec | None = None
    """Measures how pictures fit their prompts (CLIP score), and by its features how far they are as a set from the
    reference pictures (a Frechet distance; FID proper takes an Inception network's); null: both are not run."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the sampler; null: as the model's decoder declares."""
    guidance: float | None = Field(default=None, ge=0.0)
    """Weight of classifier-free guidance, 1 is none; null: as the model's decoder declares."""
    seed: int = 42
    """Question n is drawn with seed + n."""


class EvaluationSpec(Spec):
    """What `mmmoe eval` and the end of a run measure."""

    benchmarks: list[BenchmarkSpec] = Field(min_length=1)
    batch: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """First so many questions of each benchmark; the scores are then marked partial."""
    baseline_limit: int | None = Field(default=None, ge=1)
    """Likewise for the blind and untrained variants alone; fewer questions show that they are at chance."""
    blind: bool = True
    """Also answer with pictures and films replaced by grey, and sound by silence."""
    untrained: bool = True
    """Also score the model as it was before any image was seen (fresh connector)."""
    routing: RoutingMode = "predicted"
    """Which vision experts look at an image, of a model that has some (MoVA): those that the model names in a pass of
    its own; those that lower the loss of the right answer (labels); random ones; none; all; or a list of names."""
    routing_labels: int | None = Field(default=None, ge=1)
    """Of so many questions of each benchmark, hold the routing against the labels; null: of none."""
    tasks: Literal["model", "keyword", "label"] = "model"
    """Who tells a Slide-LoRA's gate a question's task: model: as it was trained, a learned gate by itself; keyword: the
    released rule on two phrases; label: what the benchmark asks for."""
    beams: int = Field(default=1, ge=1)
    """Continuations that generated answers are the best of; TextHarmony's release takes 5."""
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    """Divides the logits of tokens that an answer has already; TextHarmony's release takes 1.3."""
    drawing: DrawingSpec | None = None
    """Needed by benchmarks of kind drawing."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples for the 95 % intervals."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationSpec:
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError(f"benchmark names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _drawings_have_a_judge(self) -> EvaluationSpec:
        drawn = [benchmark.name for benchmark in self.benchmarks if benchmark.kind == "drawing"]
        if drawn and self.drawing is None:
            raise ValueError(f"benchmark {drawn[0]!r} is of kind drawing: give evaluation.drawing with a judge")
        return self
