"""Our models as lmms-eval asks them: its requests one by one, a task of choices, and a finished run by its folder."""

import os
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from unittest import mock

import pytest
import torch
import yaml
from bridge_exams import Shade
from evaluation_fakes import FakeModel, FakeTemplate
from PIL import Image

from mmmoe.cli import app
from mmmoe.evaluation.questions import Question
from mmmoe.evaluation.subject import Subject
from mmmoe.paths import project_root
from mmmoe.stages.evaluate import subject_of
from mmmoe.stages.handover import rebuild

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; `make lmms` installs it and runs these tests")
pytestmark = pytest.mark.lmms


@dataclass
class Asked:
    """A request, as lmms-eval's instances are."""

    args: tuple


@pytest.fixture
def bridge(tmp_path):
    from mmmoe.bridges.lmms import MmmoeLmms

    subject = Subject(FakeModel(), FakeTemplate(), {"image": Shade()}, torch.device("cpu"))
    model = MmmoeLmms(subject, tmp_path, max_new_tokens=50)
    pictures = [Image.new("RGB", (4, 2), (shade, 0, 0)) for shade in (123, 45)]
    model.task_dict = {"t": {"test": [{"image": picture} for picture in [*pictures, None]]}}
    return model


def see(document):
    return [] if document["image"] is None else [document["image"]]


def request(text="What?", told=None, visuals=see, number=0):
    return Asked((text, {} if told is None else told, visuals, number, "t", "test"))


def test_answers_come_in_the_order_of_the_requests(bridge):
    asked = [request(), request("why", number=2), request(number=1), request("how many", number=2), request()]
    assert bridge.generate_until(asked) == ["123", "w", "45", "h", "123"]


def test_settings_of_a_task_are_kept(bridge):
    asked = [request(told={"max_new_tokens": 1}), request(told={"until": ["3", "5"]}), request(told={"until": "2"})]
    assert bridge.generate_until([*asked, request()]) == ["1", "12", "1", "123"]
    before = bridge._subject.decoding
    with mock.patch.object(FakeModel, "generate", return_value=[[65]]) as generate:
        bridge.generate_until([request(told={"num_beams": 3, "temperature": 0, "do_sample": False, "top_p": None})])
    assert generate.call_args.kwargs["beams"] == 3
    assert bridge._subject.decoding is before


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(told={"temperature": 0.7}), "asks for answers drawn at random.*--gen_kwargs do_sample=False"),
        (request(told={"do_sample": True}), "asks for answers drawn at random"),
        (request(visuals=lambda document: [document["image"]] * 2), "a document has 2 pictures, a question here has"),
        (request(visuals=lambda document: [{"array": [0.0]}]), "a document has dict, and pictures and films are taken"),
        (request("see <image>", visuals=lambda document: []), "holds <image> without an item"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, words, bridge):
    with pytest.raises(ValueError, match=words):
        bridge.generate_until([asked])


def test_several_rounds_are_refused(bridge):
    with pytest.raises(ValueError, match="asks in several rounds"):
        bridge.generate_until_multi_round([request()])


def test_a_continuation_has_a_loss_and_is_what_would_be_said_or_not(bridge):
    asked = [request(told=text) for text in (" 123", " 12", " 45")]
    asked += [request(told=lambda document: "45", number=1), Asked(("", "word"))]
    found = [result.text for result in bridge.loglikelihood(asked)]
    assert [is_said for _, is_said in found] == [True, False, False, True, False]
    picture = bridge._store.keep_picture(see(bridge.task_dict["t"]["test"][0])[0])
    question = Question("1", "What?", "", picture, choices=("123", "12", "45"))
    [scores] = bridge._subject.score([question])
    assert [loss for loss, _ in found[:3]] == pytest.approx([-score for score in scores])


def test_a_picture_is_kept_once(bridge, tmp_path):
    bridge.loglikelihood([request(told=text) for text in ("a", "b", "c")])
    bridge.generate_until([request()])
    assert len(list(tmp_path.rglob("*.png"))) == 1
    assert bridge._subject._model.encoded == 1


def simple_evaluate(folder, **more):
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    with mock.patch.dict(os.environ, offline):
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(folder), include_defaults=False)
        return simple_evaluate(task_manager=manager, bootstrap_iters=0, **more)


def write_task(folder, rows, pictures, **more):
    from mmmoe.bridges.lmms_tasks import write_table

    write_table(folder / "colours.parquet", rows, pictures)
    task = {
        "task": "colours",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": "colours.parquet"}},
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_visual": "image",
        "doc_to_target": "answer",
    }
    (folder / "colours.yaml").write_text(yaml.safe_dump(task | more))


def metric(name):
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True}]


def test_of_choices_the_likeliest_is_taken_and_the_model_is_left_as_it_was(bridge, tmp_path):
    pictures = [bridge._store.keep_picture(Image.new("RGB", (4, 2), (shade, 0, 0))) for shade in range(6)]
    choices = ("ab", "cd", "ef")
    questions = [Question(str(at), "which?", "", path, choices) for at, path in enumerate(pictures)]
    best = [max(range(3), key=scores.__getitem__) for scores in bridge._subject.score(questions)]
    rows = [{"question": "which?", "choices": list(choices), "answer": at % 3} for at in range(6)]
    write_task(
        tmp_path, rows, pictures, output_type="multiple_choice", doc_to_choice="choices", metric_list=metric("acc")
    )
    model = bridge._subject._model.train()
    random = torch.random.get_rng_state()
    found = simple_evaluate(
        tmp_path, model=bridge, tasks=["colours"], random_seed=None, numpy_random_seed=None, torch_random_seed=None
    )
    right = [float(taken == row["answer"]) for taken, row in zip(best, rows, strict=True)]
    assert [sample["acc"] for sample in found["samples"]["colours"]] == right
    assert 0 < sum(right) < 6
    assert bridge._subject._model is model
    assert model.training
    assert torch.equal(random, torch.random.get_rng_state())


def test_arguments_are_checked(tmp_path):
    from mmmoe.bridges.lmms import MmmoeLmms

    with pytest.raises(ValueError, match="does not take 'pth'; it knows path, max_new_tokens"):
        MmmoeLmms.create_from_arg_string("path=runs/a,pth=b")
    with pytest.raises(ValueError, match="needs path=FOLDER"):
        MmmoeLmms.create_from_arg_string("max_new_tokens=3")
    with pytest.raises(ValueError, match="is not a run folder"):
        MmmoeLmms.create_from_arg_string(f"path={tmp_path}")


def entry():
    declared = tomllib.loads((project_root() / "pyproject.toml").read_text())["project"]["entry-points"]
    [(name, value)] = declared["lmms_eval.models"].items()
    return EntryPoint(name, value, "lmms_eval.models").load()()


def test_a_finished_run_is_asked_by_its_folder(tmp_path, monkeypatch):
    from lmms_eval.models import MODEL_REGISTRY_V2
    from small_project import make_project

    configuration = make_project(tmp_path / "project")
    one_step = [f"stages.{stage}.training.steps=1" for stage in ("language", "align", "mole")]
    monkeypatch.setattr(sys, "argv", ["mmmoe", "run", str(configuration), "evaluation=null", *one_step])
    with pytest.raises(SystemExit, match="0"):
        app()
    run = tmp_path / "project/runs/small"
    MODEL_REGISTRY_V2.register_manifest(entry(), overwrite=True)
    pictures = sorted((tmp_path / "project/images").iterdir())[:5]
    rows = [{"question": "which shape?", "answer": "circle"}] * 5
    write_task(
        tmp_path, rows, pictures, output_type="generate_until", generation_kwargs={"max_new_tokens": 4},
        metric_list=metric("exact_match"),
    )  # fmt: skip
    found = simple_evaluate(tmp_path, model="mmmoe", model_args=f"path={run}", batch_size=2, tasks=["colours"])
    said = [sample["filtered_resps"][0] for sample in found["samples"]["colours"]]
    model, heritage = rebuild(run / "stages/mole/final")
    subject = subject_of(model, heritage, tmp_path / "cache")
    assert said == subject.generate(
        [Question(str(at), "which shape?", "", path) for at, path in enumerate(pictures)], 4
    )
