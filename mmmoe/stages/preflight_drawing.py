"""What is wrong with a run that draws images (TextHarmony), or is asked to, known before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from mmmoe import paths
from mmmoe.data.letters import Letters
from mmmoe.data.tokenizer import load_tokenizer
from mmmoe.evaluation.judge import RUNTIME
from mmmoe.evaluation.questions import load_questions
from mmmoe.evaluation.spec import EvaluationSpec
from mmmoe.models.language import tokenizer_folder
from mmmoe.models.lora.spec import SlideLoRASpec
from mmmoe.models.spec import ModelSpec, TextHarmonySpec
from mmmoe.models.weights import weight_problems
from mmmoe.stages.handover import adapters_in
from mmmoe.stages.spec import RunSpec, StageSpec

SAMPLE = "QUICK"
"""A word whose letters a tokenizer must keep apart where each is laid on a cell of its own."""


def problems_of_drawing(run: RunSpec) -> Iterator[str]:
    """Yields what does not fit together, in words."""
    if isinstance(run.model, TextHarmonySpec):
        for stage in run.stages:
            yield from (f"stages.{stage.name}.{text}" for text in _of_stage(stage))
        yield from _of_sharding(run)
        if run.model.decoder.glyphs is not None:
            yield from (f"model.decoder.glyphs: {text}" for text in _of_letters(run.model))
    if run.evaluation is not None:
        yield from (f"evaluation.{text}" for text in _of_evaluation(run, run.evaluation))


def lays_letters(model: ModelSpec) -> bool:
    """Says whether a model lays each letter between quotation marks on a cell of its own."""
    return isinstance(model, TextHarmonySpec) and model.decoder.glyphs is not None


def problem_of_letters(model: ModelSpec, prompts: Iterable[str]) -> str | None:
    """Returns why the first of some prompts that a model cannot write is none; None if there is none such."""
    if not isinstance(model, TextHarmonySpec) or model.decoder.glyphs is None:
        return None
    tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(model)))
    letters, cells = Letters(tokenizer), model.decoder.width // model.decoder.glyphs.pitch
    found = (letters.problem(tokenizer.encode(prompt, add_special_tokens=False), cells) for prompt in prompts)
    return next((problem for problem in found if problem is not None), None)


def _of_stage(stage: StageSpec) -> Iterator[str]:
    if stage.template.kind == "plain" and any(pattern.startswith("decoder.") for pattern in stage.trains):
        yield (
            "template: plain leaves out what is asked, so the decoder would learn to draw from nothing; take vicuna_v1 "
            "or chat, or leave decoder.* out of trains"
        )


def _of_sharding(run: RunSpec) -> Iterator[str]:
    """Refuses what was seen to wait for ever: two processes, ZeRO 3 and a ViT-Adapter that trains."""
    if run.model.parts()["tower"].kind != "vit_adapter" or run.engine.kind != "deepspeed" or run.engine.zero != 3:
        return
    trained = [stage.name for stage in run.stages if any(pattern.startswith("tower.") for pattern in stage.trains)]
    if trained:
        yield (
            f"engine.zero: 3 was seen to hang with a trained vit_adapter (stage {trained[0]}); take zero 2, or leave "
            "tower.* out of trains"
        )


def _of_letters(model: TextHarmonySpec) -> Iterator[str]:
    """Tries whether the tokenizer keeps quotation marks and the letters between them apart."""
    try:
        tokenizer = load_tokenizer(paths.resolve(tokenizer_folder(model)))
    except ValueError:
        return  # told with the templates
    ids = tokenizer.encode(f'the word "{SAMPLE}" in red', add_special_tokens=False)
    found = [tokenizer.decode([ids[place]]).strip() for place in Letters(tokenizer).quoted(ids)]
    if found != list(SAMPLE):
        yield (
            f'the tokenizer makes {found} of "{SAMPLE}", but each id between quotation marks is laid on the cell of '
            "one letter; use a tokenizer that keeps capitals and quotation marks apart, or write glyphs: null"
        )


def _of_questions(run: RunSpec, evaluation: EvaluationSpec) -> Iterator[str]:
    """Looks for words that do not fit on their cells."""
    for benchmark in evaluation.benchmarks if lays_letters(run.model) else ():
        if benchmark.kind != "drawing":
            continue
        try:
            questions = load_questions(benchmark, evaluation.limit).questions
            problem = problem_of_letters(run.model, [question.text for question in questions])
        except ValueError:
            continue  # told with the files and the templates
        if problem is not None:
            yield f"benchmarks.{benchmark.name}: {problem}"


def _tells_somebody(run: RunSpec, evaluation: EvaluationSpec) -> Iterator[str]:
    """Looks for a gate that can be told tasks."""
    if evaluation.tasks == "model":
        return
    try:
        adapters = adapters_in(run, run.stages[-1])
    except ValueError:
        return  # told with where stages start
    if not any(isinstance(adapter, SlideLoRASpec) for adapter in adapters):
        yield f"tasks: {evaluation.tasks}, but no stage adds a Slide-LoRA that could be told; leave it out"


def _of_evaluation(run: RunSpec, evaluation: EvaluationSpec) -> Iterator[str]:
    """Looks for who draws and who judges."""
    yield from _tells_somebody(run, evaluation)
    yield from _of_questions(run, evaluation)
    drawn = [benchmark.name for benchmark in evaluation.benchmarks if benchmark.kind == "drawing"]
    if not drawn:
        return
    if not isinstance(run.model, TextHarmonySpec):
        yield (
            f"benchmarks.{drawn[0]}: {run.model.family} draws no images; leave benchmarks of kind drawing out, or take "
            "model.family text_harmony"
        )
        return
    assert evaluation.drawing is not None, "the declaration asks for it"
    judge, clip = evaluation.drawing.judge, evaluation.drawing.clip
    if not paths.resolve(judge).is_file():
        yield (
            f"drawing.judge: no file {judge}; data/prepare_text_harmony.py puts a reader there, or take "
            "PP-OCRv6_rec_small.onnx out of the wheel of the package rapidocr"
        )
    if find_spec(RUNTIME) is None:
        yield f"drawing.judge: reading the file needs the package {RUNTIME}: pip install 'mmmoe[onnx]'"
    if clip is not None and not paths.resolve(clip.path).is_file():
        yield f"drawing.clip.path: no file {clip.path}; put the safetensors of a CLIP there, or leave clip out"
    if evaluation.drawing.fid is not None:
        yield from (f"drawing.fid.{text}" for text in weight_problems(evaluation.drawing.fid))
