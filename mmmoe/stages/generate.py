"""`mmmoe generate`: pictures from a prompt, or a picture edited by one, as PNG files and one grid of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.progress import track

from mmmoe import dist
from mmmoe.config.load import settings
from mmmoe.config.spec import Spec
from mmmoe.evaluation.drawing import as_picture, grid
from mmmoe.evaluation.questions import Question
from mmmoe.log import console, logger
from mmmoe.models.spec import ModelSpec
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild
from mmmoe.stages.ledger import finished_stage
from mmmoe.stages.preflight_drawing import lays_letters, problem_of_letters


class GenerateSpec(Spec):
    """What is drawn and how."""

    image: str | None = None
    """A picture that the prompt is about, to be edited."""
    out: str = "generated"
    """Folder for the pictures."""
    count: int = Field(default=4, ge=1)
    """Pictures of the prompt, each with a seed of its own."""
    seed: int = 42
    """Of the first picture; the next has the next number."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the sampler; null: as the model's decoder declares."""
    guidance: float | None = Field(default=None, ge=0.0)
    """Weight of classifier-free guidance, 1 is none; null: as the model's decoder declares."""
    batch: int = Field(default=4, ge=1)
    """Pictures drawn at once; which picture a seed gives does not depend on it."""


def generate(folder: Path, prompt: str, overrides: Sequence[str]) -> list[Path]:
    """Draws, writes `<n>-seed<s>.png` and `grid.png`, and returns the paths, the grid last.

    Args:
        folder: a run folder, or one finished stage's.
        prompt: what is asked, for example `Generate an image of the word "HELLO" in red on white.`
        overrides: `key=value` of GenerateSpec.

    Raises:
        ValueError: The folder holds no finished model that draws, a value is wrong, or the model lays quoted letters on
            cells and those of the prompt do not fit on them.
    """
    spec = settings(GenerateSpec, list(overrides))
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what is to be drawn")
    if spec.image is not None and not Path(spec.image).is_file():
        raise ValueError(f"image: no file {spec.image}")
    final, cache = finished_stage(folder)
    model, heritage = rebuild(final)
    if model.canvas is None:
        raise ValueError(f"{folder} holds a {heritage.model.family}, which draws no images; a text_harmony does")
    _check_letters(heritage.model, prompt)
    subject = subject_of(model, heritage, cache)
    subject.batch = spec.batch
    image = None if spec.image is None else Path(spec.image)
    numbers, pictures = range(spec.count), []
    console.print(f"drawing {spec.count} on {dist.device()}")
    for start in track(range(0, spec.count, spec.batch), description="batches", console=console):
        part = numbers[start : start + spec.batch]
        asked = [Question(str(number), prompt, "", image) for number in part]
        seeds = [spec.seed + number for number in part]
        drawn = subject.draw(asked, seeds, steps=spec.steps, guidance=spec.guidance)
        if subject.unanswered:
            raise ValueError(next(iter(subject.unanswered.values())))
        pictures += [as_picture(one) for one in drawn]
    out = Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{number}-seed{spec.seed + number}.png" for number in numbers]
    for picture, path in zip(pictures, written, strict=True):
        picture.save(path)
    sheet = out / "grid.png"
    grid(pictures, columns=min(4, spec.count)).save(sheet)
    return [*written, sheet]


def _check_letters(model: ModelSpec, prompt: str) -> None:
    problem = problem_of_letters(model, [prompt])
    if problem is not None:
        raise ValueError(f"prompt: {problem}")
    if lays_letters(model) and '"' not in prompt:
        logger().warning(
            'the prompt has no text in quotation marks, and this model writes what is quoted: try the word "HELLO"'
        )
