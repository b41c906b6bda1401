"""What is measured: benchmarks as data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from mmmoe.config.spec import Spec
from mmmoe.evaluation.metrics.registry import metric_of
from mmmoe.evaluation.prompts import check_prompt
from mmmoe.models.towers.spec import OnnxTowerSpec

RoutingMode = Literal["predicted", "labels", "random", "random_one", "none", "all"] | list[str]


class JoinSpec(Spec):
    """A second table, whose columns stand beside those of the first."""

    file: str | list[str]
    """As a benchmark's; the first file's folder is not assumed."""
    by: str
    """Column that says which row of the second table belongs to one of the first."""
    to: str | None = None
    """What that column is called there; null: the same."""
    rows: str | None = None
    """As a benchmark's."""


class BoxSpec(Spec):
    """How a table gives the box that is asked for, and in what unit a model is to give it."""

    column: str
    """List of four numbers in pixels of the image."""
    form: Literal["xyxy", "xywh"]
    """Left, top, right and bottom; or left, top, width and height."""
    unit: Literal["pixel", "image", "square"] = "image"
    """pixel: as in the table; image: shares of the image's width and height; square: of the square it is padded to."""


class FieldsSpec(Spec):
    """Which column of a published table is what.

    A column is named by itself or, inside others, by a dotted path (`image.bytes`; through a list, of every entry:
    `answers.answer`). A text with columns in braces is filled in (`COCO_val2014_{image_id:012d}.jpg`). Beside the
    table's own there are `@file` (the name given to the file, or its stem), `@row` (number of the row, from 0 on over
    all files) and `@key` (of a JSON mapping).
    """

    rows: str | None = None
    """Path to the rows inside a JSON document; null: the document is a list of them, or a mapping from keys to them."""
    columns: list[str] | None = None
    """Names of the columns of a tab-separated text without a first line of names."""
    join: JoinSpec | None = None
    where: dict[str, str | int | list[str | int]] | None = None
    """Rows with one of these values in these columns are questions of the benchmark, others are not; null: all are."""
    having: list[str] = []
    """Rows in which one of these columns is empty are not questions of the benchmark."""
    each: str | None = None
    """List whose every entry makes a question; to the other fields the column is then that entry."""
    merge: bool = False
    """Rows of one id are one question, whose answers are theirs all; otherwise an id may stand once only."""
    id: str = "@row"
    question: str | None = "question"
    """Null: the prompt says all, as where a caption is asked for."""
    drop: list[str] = []
    """Texts that are taken out of every question, as where another prompt replaces them."""
    hint: str | None = None
    context: str | None = None
    answer: str | list[str] | None = "answer"
    """One column or several; a list is several right answers. Null: see `box`."""
    answer_is: Literal["text", "index", "letter", "literal"] = "text"
    """text: as it stands; index: number of a choice, from 0 on; letter: of a choice; literal: a list in Python's
    writing."""
    answer_pattern: str | None = None
    """Regular expression: what its group matches in the column, joined by spaces, is the answer."""
    box: BoxSpec | None = None
    """The answer is a box."""
    choices: str | list[str] | None = None
    """A column with a list (also in Python's or numpy's writing), or one a choice, the last of which may be empty."""
    category: str | None = None
    """Sub-task, split or type that scores are told by."""
    group: str | None = None
    """What is judged together."""
    group_modulo: int | None = Field(default=None, ge=2)
    """The remainder of a numeric group is the group: MMBench's rotation n of question q has index n * 1,000,000 + q."""
    media: str | None = None
    """Folder, as seen from the table's, of the files that the columns below name. Null: the columns hold the items
    themselves (bytes, base64, a data URI, or a mapping with bytes)."""
    image: str | list[str] | None = None
    """One name, or several of which the first that there is counts."""
    video: str | list[str] | None = None
    """Likewise; a column with a list of names is a film's frames."""
    speech: str | list[str] | None = None
    audio: str | list[str] | None = None

    @model_validator(mode="after")
    def _one_answer(self) -> FieldsSpec:
        if (self.answer is None) == (self.box is None):
            raise ValueError("give either `answer` or `box` (then answer: null)")
        if self.answer_is in ("index", "letter") and self.choices is None:
            raise ValueError(f"answer_is: {self.answer_is} needs `choices`")
        if self.group_modulo is not None and self.group is None:
            raise ValueError("group_modulo needs `group`")
        if self.answer_pattern is not None and re.compile(self.answer_pattern).groups != 1:
            raise ValueError(f"answer_pattern {self.answer_pattern!r} must have one group")
        return self


class BenchmarkSpec(Spec):
    """A list of questions in files, and how they are put and judged."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names its rows and its answer file."""
    file: str | list[str] | dict[str, str]
    """JSON Lines of our own: id, question, answer (or answers, a list), image, video, speech or audio, and choices,
    category, group, hint, context where there are any. With `fields`, any json, jsonl, parquet, tsv, csv or txt: one,
    several, or by name; `*` and `?` stand for letters of a file name."""
    kind: Literal["multiple_choice", "short_answer", "location", "drawing"]
    """multiple_choice: the choice with the highest log-likelihood; short_answer: greedy generation, exact match;
    location: likewise, four numbers whose box overlaps the right one by half (Acc@0.5); drawing: the model draws, and a
    judge must read the answer on the picture."""
    metric: str | None = None
    """What answers are worth, by its name in the registry (contained: TextHarmony's accuracy, which favours long
    answers); null: exact of short_answer, choice of multiple_choice, written of drawing, location of location."""
    fields: FieldsSpec | None = None
    """Null: the file is our own JSON Lines."""
    prompt: str = "{question}"
    """Wording: {question}, {choices} (a line each, "A. ..."), {letters} ("A, B, C"), {hint} and {context} are filled
    in; a line whose fields are all empty is left out."""
    bad_rows: Literal["skip", "stop"] | None = None
    """skip: a wrong row is set aside, counted and told; stop: one is enough to stop the run. Null: stop for our own
    JSON Lines, which whoever wrote them can mend, and skip for published tables, which nobody here can."""
    domain: str = "general"
    max_new_tokens: int = Field(default=8, ge=1)
    """Longest generated answer."""

    @property
    def stops_at_bad_rows(self) -> bool:
        """Says whether one wrong row stops the run."""
        return (self.bad_rows or ("stop" if self.fields is None else "skip")) == "stop"

    @model_validator(mode="after")
    def _asks(self) -> BenchmarkSpec:
        check_prompt(self.prompt, asks=self.fields is None or self.fields.question is not None)
        return self

    @model_validator(mode="after")
    def _metric_is_known(self) -> BenchmarkSpec:
        if self.metric is not None:
            metric_of(self.metric)
        return self


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
    reference pictures (a Frechet distance); null: both are not run."""
    fid: OnnxTowerSpec | None = None
    """FID's own Inception network, exported to ONNX with its pooled features as output (grid [1, 1], 2048 channels,
    image_size 299): how far pictures are from the references as the papers measure it; null: not run."""
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
    """Also score the model as it was before any image was seen: the language model as its last stage of text alone left
    it, or pretrained, all else fresh; wholly fresh where a fresh one learned with pictures from its first stage on."""
    routing: RoutingMode = "predicted"
    """Which vision experts look at an image, of a model that has some (MoVA): those that the model names in a pass of
    its own; those that lower the loss of the right answer (labels); one to three at random, or one; none; all; or a
    list of names."""
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
    cache: bool = True
    """Keep the model's answers in the run's cache, for evaluations with another metric or suite. false: only until the
    evaluation is finished, so that a killed one goes on."""

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
