"""What people get wrong about routing is told before the start; a changed judge is noticed by all that keep results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mova_project import finished_stage, make_mova_project, tower

from mmmoe.config.load import load
from mmmoe.engine import checkpoint
from mmmoe.models.build import build_model
from mmmoe.models.spec import model_spec
from mmmoe.stages.assembly import digests
from mmmoe.stages.cache import StageCache
from mmmoe.stages.preflight import preflight, problems
from mmmoe.stages.run import _is_finished
from mmmoe.stages.spec import RoutingSpec, RunSpec


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_mova_project(tmp_path_factory.mktemp("mova") / "project", samples=8)


def told(project, change, tmp_path):
    """Returns what is said of a changed configuration."""
    data = yaml.safe_load(project.read_text())
    change(data)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return list(problems(load(path, RunSpec)))


def test_the_project_itself_has_nothing_wrong(project, tmp_path):
    assert told(project, lambda data: None, tmp_path) == []


def test_routing_of_a_model_without_experts(project, tmp_path):
    def to_llava(data):
        model = data["model"]
        data["model"] = {"family": "llava_mole", "language": model["language"], "tower": model["tower"]}
        data["stages"] = [data["stages"][0] | {"trains": ["connector.*"]}]

    [said] = told(project, to_llava, tmp_path)
    assert said == (
        "stages.align.routing: llava_mole has no vision experts to route images to; leave it out, or take model.family "
        "mova"
    )


MISTAKES = {
    "unknown source": (
        lambda data: data["stages"][1]["routing"]["conversations"].update(colour={}),
        "stages.tune.routing.conversations: 'colour' is no source of its mixture; did you mean 'colours'?",
    ),
    "no source like it": (
        lambda data: data["stages"][1]["routing"]["conversations"].update(zzz={}),
        "stages.tune.routing.conversations: 'zzz' is no source of its mixture; there are shapes, colours, text",
    ),
    "a template without questions": (
        lambda data: data["stages"][1].update(template={"kind": "plain"}),
        "stages.tune.routing.conversations: template plain leaves out what is asked; take vicuna_v1 or chat",
    ),
    "judge comes later": (
        lambda data: data["stages"][1].update(routing={"kind": "built", "judge": "built"}),
        "stages.tune: takes parts of 'built', which comes later in this run; put it before",
    ),
    "judge is itself": (
        lambda data: data["stages"][2]["routing"].update(judge="built"),
        "stages.built: takes parts of 'built', which comes later in this run; put it before",
    ),
    "a judge that cannot be asked": (
        lambda data: data["stages"][2].update(template={"kind": "plain"}, routing={"kind": "all"}),
        "stages.named.routing.judge: 'built' has template plain, which leaves out what a routing pass asks; take a",
    ),
    "named by itself": (
        lambda data: data["stages"][3]["routing"].update(judge="named"),
        "stages.named: takes parts of 'named', which comes later in this run; put it before",
    ),
    "judge is misspelt": (
        lambda data: data["stages"][2]["routing"].update(judge="tun"),
        "stages.built: takes parts of 'tun', which is no stage of this run and no folder; did you mean 'tune'?",
    ),
    "experts of the exam": (
        lambda data: data["evaluation"].update(routing=["shape", "color"]),
        "evaluation.routing: 'color' is no vision expert of the model; did you mean 'colour'?",
    ),
    "experts that train": (
        lambda data: data["stages"][1]["trains"].append("vision_experts.shape.*"),
        "stages.tune.trains: vision experts stay frozen; leave patterns that match vision_experts.shape.",
    ),
    "no tokenizer of the questions": (
        lambda data: data["model"]["text"].pop("tokenizer"),
        "model.text.tokenizer: a BERT of a config alone has none; give the folder of one",
    ),
    "another padding": (
        lambda data: data["model"]["text"]["config"].update(pad_token_id=0),
        "model.text.tokenizer: it fills rows up with id 3, but the BERT takes id 0 for padding",
    ),
    "fewer words": (
        lambda data: data["model"]["text"]["config"].update(vocab_size=100),
        "model.text.tokenizer: it has 314 ids, the BERT 100; take the tokenizer of this BERT",
    ),
    "too many ids": (
        lambda data: data["model"]["text"].update(max_tokens=65),
        "model: text.max_tokens is 65, but this BERT has 64 positions",
    ),
    "no BERT": (
        lambda data: data["model"]["text"]["config"].update(model_type="roberta"),
        "model: text.config is of model_type 'roberta', but bert is wanted here",
    ),
    "a name that modules have": (
        lambda data: data["model"]["experts"].update(half=data["model"]["experts"]["grain"]),
        "model: experts cannot be called half, as parts of every module are; choose other names",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_with_what_to_do(case, project, tmp_path):
    change, said = MISTAKES[case]
    found = told(project, change, tmp_path)
    assert any(line.startswith(said) for line in found), found
    assert len(found) <= 3


def test_experts_of_the_exam_of_a_model_without_any(project, tmp_path):
    def to_llava(data):
        model = data["model"]
        data["model"] = {"family": "llava_mole", "language": model["language"], "tower": model["tower"]}
        data["stages"] = [data["stages"][0] | {"routing": None, "trains": ["connector.*"]}]
        data["evaluation"]["routing"] = ["shape"]

    assert told(project, to_llava, tmp_path) == [
        "evaluation.routing: 'shape' is no vision expert of the model; there are none"
    ]


REFUSED = {
    "built without a judge": ({"kind": "built"}, "built and predicted need a judge"),
    "predicted without a judge": ({"kind": "predicted"}, "built and predicted need a judge"),
    "a judge of nothing": ({"judge": "tune"}, "the other kinds take none"),
    "random with a judge": ({"kind": "random", "judge": "tune"}, "the other kinds take none"),
    "most 0": ({"most": 0}, "greater than or equal to 1"),
    "an unknown kind": ({"kind": "guessed"}, "'shards', 'built', 'predicted', 'random', 'none' or 'all'"),
    "an unknown switch": ({"conversations": {"shapes": {"shufle": True}}}, "shufle"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_declarations_that_mean_nothing(case):
    values, said = REFUSED[case]
    with pytest.raises(ValueError, match=said):
        RoutingSpec.model_validate(values)


MODEL_MISTAKES = {
    "base": (lambda model: model["experts"].update(base=model["experts"]["shape"]), "experts cannot be called base"),
    "lora": (lambda model: model["experts"].update(lora=model["experts"]["shape"]), "experts cannot be called lora"),
    "upper case": (lambda model: model["experts"].update(SAM=model["experts"]["shape"]), "pattern"),
    "a dot": (lambda model: model["experts"].update({"a.b": model["experts"]["shape"]}), "pattern"),
    "nobody": (lambda model: model.update(experts={}), "at least 1"),
    "not described": (lambda model: model["experts"]["shape"].update(descriptions=[]), "at least 1"),
    "no square": (lambda model: model.update(routing_tokens=8), "routing_tokens is 8; make it a square"),
}


@pytest.mark.parametrize("case", MODEL_MISTAKES)
def test_models_that_cannot_be(case, project):
    change, said = MODEL_MISTAKES[case]
    model = yaml.safe_load(project.read_text())["model"]
    change(model)
    with pytest.raises(ValueError, match=said):
        model_spec(model)


def test_27_experts_have_no_letters(project):
    model = yaml.safe_load(project.read_text())["model"]
    model["experts"] = {f"e{number}": model["experts"]["shape"] for number in range(27)}
    with pytest.raises(ValueError, match="at most 26"):
        model_spec(model)
    model["experts"].popitem()
    assert len(build_model(model_spec(model), 0, meta=True).experts) == 26


def with_judge(project, folder: Path):
    return load(project, RunSpec, [f"stages.built.routing.judge={folder}"])


def test_a_judge_of_another_model_is_refused(project, tmp_path):
    run = load(project, RunSpec)
    values = run.model.model_dump(mode="json")
    of_another = {
        "mova": model_spec(values | {"experts": {"shape": values["experts"]["shape"]}}),
        "llava_mole": model_spec({"family": "llava_mole", "language": values["language"], "tower": tower(64, 32)}),
    }
    for family, model in of_another.items():
        judge = finished_stage(tmp_path / family, run.model_copy(update={"model": model}))
        with pytest.raises(ValueError, match="small: 1 problem before the start") as said:
            preflight(with_judge(project, judge.path))
        assert f"stages.built: takes parts of '{judge.path}', which is no stage of this run" in str(said.value)
        assert "holds another model; start from a stage of this one" in str(said.value)
    preflight(with_judge(project, finished_stage(tmp_path / "good", run).path))


def test_a_changed_judge_is_noticed_by_kept_stages_and_finished_ones(project, tmp_path):
    run = load(project, RunSpec)
    first, second = (finished_stage(tmp_path / f"{seed}", run, seed=seed) for seed in (1, 2))
    stage, start = run.stages[2], finished_stage(tmp_path / "start", run, seed=3)
    paths = [StageCache(run, stage, start, {"tune": judge}).path for judge in (first, second, first)]
    assert paths[0] == paths[2] != paths[1]
    others = stage.model_copy(update={"routing": stage.routing.model_copy(update={"most": 1})})
    assert StageCache(run, others, start, {"tune": first}).path != paths[0]

    final = finished_stage(tmp_path / "final", run)
    state = final.checkpoint.state
    state.spec["stage"] = stage.model_dump(mode="json")
    done = replace(state, parent=start.checkpoint.digest, extra={"base": "", "parts": digests({"tune": first})})
    checkpoint.write_at(tmp_path / "done", done, final.checkpoint.tensors, {})
    assert _is_finished(stage, tmp_path / "done", start, {"tune": first})
    assert not _is_finished(stage, tmp_path / "done", start, {"tune": second})


def test_another_tokenizer_of_the_questions_is_noticed_by_kept_stages(project, tmp_path):
    run = load(project, RunSpec)
    before = StageCache(run, run.stages[0], None, {}).path
    make_mova_project(tmp_path / "copy", samples=8)
    moved = run.model.model_copy(
        update={"text": run.model.text.model_copy(update={"tokenizer": str(tmp_path / "copy/tokenizer")})}
    )
    assert StageCache(run.model_copy(update={"model": moved}), run.stages[0], None, {}).path != before
    words = tmp_path / "copy/tokenizer/tokenizer.json"
    there = StageCache(run.model_copy(update={"model": moved}), run.stages[0], None, {}).path
    words.write_text(words.read_text().replace("red", "der"))
    assert StageCache(run.model_copy(update={"model": moved}), run.stages[0], None, {}).path != there
