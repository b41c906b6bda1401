"""A model and template small enough to know every answer by hand."""

import os
import signal
from dataclasses import dataclass

import torch

from mmmoe import dist
from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.evaluation import runner
from mmmoe.evaluation.runner import evaluate
from mmmoe.evaluation.subject import Subject
from mmmoe.models.output import ModelOutput

VOCABULARY = 128
EOS = 1


@dataclass(frozen=True)
class FakeEncoded:
    input_ids: list
    labels: list


class FakeTokenizer:
    """One id a character; 0 pads, 1 ends."""

    pad_token_id = 0
    eos_token_id = EOS

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i > 1)


class FakeTemplate:
    tokenizer = FakeTokenizer()
    letters = None

    def prompt(self, turns):
        before, *after = turns[0].text.split("<image>")
        ids = [ord(c) for c in before]
        for part in after:
            ids += [IMAGE_ID, *(ord(c) for c in part)]
        return [*ids, ord(":")]

    def prompt_to_draw(self, turns):
        return [*self.prompt(turns), ord(" ")]

    def encode(self, turns):
        prompt, answer = self.prompt(turns[:1]), [ord(c) for c in turns[1].text] + [EOS]
        return FakeEncoded(prompt + answer, [IGNORE_ID] * len(prompt) + answer)


class FakeTransform:
    """A file of one byte is a picture of that shade."""

    fit, key = "pad", ""

    def __call__(self, image):
        if len(image) != 1:
            raise ValueError("not a picture")
        return torch.full((3, 2, 2), float(image[0]))

    def blank(self):
        return torch.full((3, 2, 2), 128.0)


class FakeTower:
    key = "fake"


class FakeModel(torch.nn.Module):
    """Cost of a token after token a, in sight of the shade s: a table; its rows do not depend on the batch."""

    def __init__(self, longest=10_000):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.rand(VOCABULARY, VOCABULARY, generator=generator)
        self.tower = FakeTower()
        self.longest = longest
        self.encoded = 0
        self.calls = []

    kinds = ("image",)
    canvas = None
    max_positions = 10_000

    def positions(self, kind):
        return 1

    def tower_of(self, kind):
        assert kind in self.kinds
        return self.tower

    def encode(self, kind, media):
        assert kind in self.kinds
        self.encoded += len(media)
        return media.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, 4)

    def cost(self, previous, token, shade):
        return float(self.table[(previous + int(shade)) % VOCABULARY, token])

    def forward(self, input_ids_BT, attention_mask_BT, labels_BT=None, media=None, features=None):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.calls.append(input_ids_BT.shape)
        shades = iter([] if features is None else features["image"][:, 0, 0].tolist())
        nll, targets = [], []
        for ids, mask, labels in zip(input_ids_BT, attention_mask_BT, labels_BT, strict=True):
            assert mask[: int(mask.sum())].all(), "padding is on the right"
            shade = next(shades) if (ids == IMAGE_ID).any() else 0
            seen = [t for t in range(1, len(ids)) if labels[t] != IGNORE_ID and t < self.longest]
            nll.append(sum(self.cost(int(ids[t - 1]), int(ids[t]), shade) for t in seen))
            targets.append(len(seen))
        assert next(shades, None) is None, "as many pictures as placeholders"
        return ModelOutput(torch.tensor(nll), torch.tensor(targets))

    def generate(self, input_ids_BT, attention_mask_BT, media=None, features=None, *, max_new_tokens, eos_id, pad_id):
        """Says the shade in decimal digits, or the question's first letter where there is no picture."""
        shades = iter([] if features is None else features["image"][:, 0, 0].tolist())
        rows = []
        assert input_ids_BT.shape[1] <= self.max_positions, "such a prompt would end the exam"
        for ids, mask in zip(input_ids_BT, attention_mask_BT, strict=True):
            assert mask[len(mask) - int(mask.sum()) :].all(), "padding is on the left"
            real = ids[mask].tolist()
            said = [ord(c) for c in str(int(next(shades)))] if IMAGE_ID in real else [real[0]]
            rows.append(said[:max_new_tokens])
        return rows


def make_subject(**more):
    return Subject(FakeModel(), FakeTemplate(), {"image": FakeTransform()}, torch.device("cpu"), **more)


def sit_in_process(rank, world, port, spec, folder, key=None, cache=None):
    """Evaluates as one of several processes and writes down what came out."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.start()
    rows = evaluate(make_subject(key=key), spec, folder, "trained", cache=cache)
    (folder / f"rank{rank}.txt").write_text(repr([(r.benchmark, r.n, r.score, r.prompt_hash) for r in rows]))
    dist.stop()


class DrawingModel(FakeModel):
    """Draws a picture whose red says the last letter of a prompt, its green the seed and its blue the shade seen."""

    canvas = (4, 6)

    def draw(self, input_ids_BT, attention_mask_BT, media=None, features=None, task_B=None, *, steps, guidance, seeds):
        assert not self.training
        self.calls.append((steps, guidance, tuple(seeds), None if task_B is None else task_B.tolist()))
        shades = iter([] if features is None else features["image"][:, 0, 0].tolist())
        pictures = []
        assert input_ids_BT.shape[1] < self.max_positions, "nor would a picture find a beginning"
        for ids, mask, seed in zip(input_ids_BT, attention_mask_BT, seeds, strict=True):
            assert mask[len(mask) - int(mask.sum()) :].all(), "padding is on the left"
            real = ids[mask].tolist()
            assert real[-1] == ord(" "), "what stands before an image"
            colour = torch.tensor([real[-3], seed, next(shades) if IMAGE_ID in real else 0]) / 255
            pictures.append(colour[:, None, None].expand(3, *self.canvas))
        return torch.stack(pictures)


class FakeReader:
    """Reads a picture's red as a letter, and nothing where there is none."""

    def __init__(self, path):
        self.path = path

    def read(self, pictures):
        reds = [picture.getpixel((0, 0))[0] for picture in pictures]
        return [chr(red) if red else "" for red in reds]


def draw_in_process(rank, world, port, spec, folder):
    """Draws as one of several processes, with a reader that is faked here as well."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    runner.OcrJudge = FakeReader
    dist.start()
    rows = evaluate(drawing_subject(), spec, folder, "trained")
    (folder / f"rank{rank}.txt").write_text(repr([(r.n, r.score, r.prompt_hash, r.measures) for r in rows]))
    dist.stop()


def drawing_subject(**more):
    return Subject(DrawingModel(), FakeTemplate(), {"image": FakeTransform()}, torch.device("cpu"), **more)


class MortalModel(FakeModel):
    """Writes down every sequence it is asked, and dies before the batch after `lives` batches."""

    def __init__(self, log, lives=None, die=None):
        super().__init__()
        self.log, self.lives, self.die = log, lives, die

    def _live(self, ids_BT, mask_BT):
        if self.lives == 0:
            self.die()
        self.lives = None if self.lives is None else self.lives - 1
        with self.log.open("a") as file:
            for ids, mask in zip(ids_BT, mask_BT, strict=True):
                file.write(f"{ids[mask].tolist()}\n")

    def forward(self, input_ids_BT, attention_mask_BT, **more):
        self._live(input_ids_BT, attention_mask_BT.bool())
        return super().forward(input_ids_BT, attention_mask_BT, **more)

    def generate(self, input_ids_BT, attention_mask_BT, **more):
        self._live(input_ids_BT, attention_mask_BT.bool())
        return super().generate(input_ids_BT, attention_mask_BT, **more)


def mortal_subject(log, lives=None, die=None, key="weights"):
    model = MortalModel(log, lives, die)
    return Subject(model, FakeTemplate(), {"image": FakeTransform()}, torch.device("cpu"), key=key)


def die_in_process(spec, folder, cache, log, lives):
    """Evaluates until it kills itself, which leaves no time for anything."""
    torch.set_num_threads(1)
    subject = mortal_subject(log, lives, lambda: os.kill(os.getpid(), signal.SIGKILL))
    evaluate(subject, spec, folder, "trained", cache=cache)


class SharedModel(FakeModel):
    """Every pass waits for the same pass of all other processes, as one whose experts are shared does."""

    passes = 0

    def _meet(self):
        self.passes += 1
        met = dist.gather_objects(self.passes)
        assert len(set(met)) == 1, met

    def forward(self, *args, **more):
        self._meet()
        return super().forward(*args, **more)

    def generate(self, *args, eos_id, max_new_tokens, **more):
        assert eos_id is None, "an end of its own would leave the others waiting"
        for _ in range(max_new_tokens):
            self._meet()
        said = super().generate(*args, eos_id=EOS, max_new_tokens=max_new_tokens, **more)
        return [[*row, EOS, ord("!")] for row in said]


def sit_in_step(rank, world, port, spec, folder, room=10_000):
    """Evaluates a model that all processes have to run together."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.start(deadline_s=60)
    model = SharedModel()
    model.max_positions = room
    subject = Subject(model, FakeTemplate(), {"image": FakeTransform()}, torch.device("cpu"), in_step=True)
    evaluate(subject, spec, folder, "trained")
    (folder / f"rank{rank}.txt").write_text(str(model.passes))
    dist.stop()
