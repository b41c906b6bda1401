"""The subject with the real template, transform and LLaVA-MoLE, against one question at a time through the logits."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from mmmoe.config.ids import IMAGE_ID
from mmmoe.data.record import Turn
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Template
from mmmoe.data.transforms import ImageTransform
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.subject import Subject
from mmmoe.models.connectors.bounds import ImageBounds
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.families.llava_mole import LlavaMole
from mmmoe.models.language import build_language
from mmmoe.models.lora.spec import ExpertsSpec
from mmmoe.models.spec import ConnectorSpec, ScratchLanguage
from mmmoe.models.towers.tower import Tower

WORDS = "what colour is it red green blue light dark USER ASSISTANT : ?"


class Quadrants(Tower):
    """Each quarter of an 8 x 8 picture through one linear map."""

    num_tokens, channels, image_size, key = 4, 6, 8, "quadrants"
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 6)
        self.freeze()

    def forward(self, pixels_ICHW):
        return self.linear(nn.functional.pixel_unshuffle(pixels_ICHW, 4).flatten(2).transpose(1, 2))


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS.split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = {
        "model_type": "llama", "vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    language = build_language(ScratchLanguage(config=config, tokenizer="none"))
    model = LlavaMole(Quadrants(), MLPConnector(ConnectorSpec(), 6, 32, 4), ImageBounds(32), language, 64)
    model.add_adapters([ExpertsSpec(level="block", sites=["language.*.mlp"], experts=3, rank=2, alpha=4)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_EDR" in name or "router" in name:
                parameter.normal_(std=0.5)
    return model.eval()


@pytest.fixture
def questions(tmp_path):
    paths = []
    for at in range(2):
        paths.append(tmp_path / f"{at}.png")
        pixels = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    colours = ("red", "dark green", "light blue")
    return [
        Question("1", "what colour is it ?", "red", paths[0], colours),
        Question("2", "what colour ?", "red", paths[1], colours[:2]),
        Question("3", "is it dark or light ?", "dark", None, ("dark", "light")),
    ]


def parts(model, tokenizer, question, answer):
    """Returns prompt and answer ids, and the picture's pixels."""
    transform = ImageTransform(8, Quadrants.mean, Quadrants.std)
    text = question.text if question.image is None else f"<image>\n{question.text}"
    template = Template(TemplateSpec(system=""), tokenizer)
    ids = template.encode([Turn("human", text), Turn("gpt", answer)]).input_ids
    answer_ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    assert ids[-len(answer_ids) :] == answer_ids
    # The subject keeps features in half precision; the reference has to start from the same ones.
    pixels = None if question.image is None else transform(question.image.read_bytes())[None]
    features = None if pixels is None else model.encode("image", pixels).half().float()
    return ids, answer_ids, None if features is None else {"image": features}


def make_subject(model, tokenizer, batch=4):
    transform = ImageTransform(8, Quadrants.mean, Quadrants.std)
    return Subject(
        model, Template(TemplateSpec(system=""), tokenizer), {"image": transform}, torch.device("cpu"), batch=batch
    )


def test_scores_are_the_log_likelihoods_of_single_questions(model, tokenizer, questions):
    scores = make_subject(model, tokenizer).score(questions)
    for question, row in zip(questions, scores, strict=True):
        for choice, score in zip(question.choices, row, strict=True):
            ids, answer, features = parts(model, tokenizer, question, choice)
            ids = torch.tensor([ids])
            logits = model.logits(ids, torch.ones_like(ids, dtype=torch.bool), features=features)
            at = logits.log_softmax(-1)[0, -len(answer) - 1 : -1]
            assert score == pytest.approx(float(at[range(len(answer)), answer].sum()), abs=2e-4)


def test_greedy_answers_are_those_of_single_questions(model, tokenizer, questions):
    answers = make_subject(model, tokenizer).generate(questions, 4)
    for question, answer in zip(questions, answers, strict=True):
        ids, gold, features = parts(model, tokenizer, question, "red")
        ids, said = ids[: -len(gold)], []
        for _ in range(4):
            so_far = torch.tensor([ids + said])
            logits = model.logits(so_far, torch.ones_like(so_far, dtype=torch.bool), features=features)
            said.append(int(logits[0, -1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        assert answer == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_the_picture_matters_until_it_is_taken_away(model, tokenizer, questions):
    same_text = [questions[0], Question("x", questions[0].text, "red", questions[1].image, questions[0].choices)]
    subject = make_subject(model, tokenizer)
    first, second = subject.score(same_text)
    assert first != pytest.approx(second, abs=1e-3)
    first, second = subject.score(same_text, blind=True)
    assert first == pytest.approx(second, abs=1e-5)


def test_the_prompt_holds_the_picture(model, tokenizer, questions):
    ids, _, _ = parts(model, tokenizer, questions[0], "red")
    assert ids.count(IMAGE_ID) == 1
