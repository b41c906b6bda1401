"""What people get wrong: each mistake is told clearly, with an exit status, and loses nothing."""

from __future__ import annotations

import json
import shutil
import socket

import yaml

from mmmoe.config.load import load
from mmmoe.data.shards import ShardSet
from mmmoe.engine import checkpoint
from mmmoe.engine.step_folders import all_steps
from mmmoe.stages.ledger import RunFolder
from mmmoe.stages.spec import RunSpec
from mmmoe.stages.status import NO_ROOM, USER_MISTAKE


def edit(path, change):
    """Changes a configuration in place."""
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def refused(mmmoe, path, *overrides):
    """Runs, expects a user's mistake and no run folder, returns what was said on one line."""
    status, said = mmmoe("run", path, *overrides)
    assert status == USER_MISTAKE, said
    assert not (path.parent / "runs").exists()
    return " ".join(said.split())


def test_misspelt_key(own_project, mmmoe):
    edit(own_project, lambda d: d["stages"][1]["training"].update(micro_bacth=2))
    said = refused(mmmoe, own_project)
    assert "run.yaml:" in said
    assert "stages.align.training.micro_bacth: unknown key; did you mean 'micro_batch'?" in said


def test_wrong_type(own_project, mmmoe):
    said = refused(mmmoe, own_project, "stages.mole.training.batch=many")
    assert "override 'stages.mole.training.batch=many': stages.mole.training.batch" in said
    assert "integer" in said


def test_missing_files(own_project, mmmoe):
    shutil.rmtree(own_project.parent / "shards" / "shapes")
    (own_project.parent / "shape.jsonl").unlink()
    said = refused(mmmoe, own_project)
    assert "stages.align.mixture.shapes: no shards (*.tar)" in said
    assert "evaluation.benchmarks.shape: no file" in said
    assert refused(mmmoe, own_project.with_name("none.yaml")).endswith("cannot be read: No such file or directory")


def test_absent_weights(own_project, mmmoe):
    folder = own_project.parent / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 32}))
    language = {"kind": "pretrained", "path": str(folder), "tokenizer": str(own_project.parent / "tokenizer")}
    edit(own_project, lambda d: d["model"].update(language=language))
    assert "has a config but no *.safetensors weights" in refused(mmmoe, own_project)


def test_tokenizer_without_anything_to_pad_with(own_project, mmmoe):
    folder = own_project.parent / "tokenizer"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if file.is_file():
            kept = {k: v for k, v in json.loads(file.read_text()).items() if not k.endswith("_token")}
            file.write_text(json.dumps(kept))
    said = refused(mmmoe, own_project)
    assert "model.language.tokenizer:" in said
    assert "pad_token" in said


def test_pattern_that_matches_nothing(own_project, mmmoe):
    said = refused(mmmoe, own_project, "stages.align.trains=[conector.*]")
    assert "stages.align.trains: 'conector.*' matches no parameter" in said
    assert "connector" in said
    said = refused(mmmoe, own_project, "stages.mole.adapters.1.sites=[language.*.mpl]")
    assert "adapter site 'language.*.mpl' names no gated feed-forward block" in said


def test_coefficient_that_no_module_consumes(own_project, mmmoe):
    frozen = "stages.mole.trains=['*.lora.*', '*.experts.*', 'connector.*']"
    said = refused(mmmoe, own_project, frozen)
    assert "stages.mole.adapters.1.balance.weight: 0.01 weighs a term of routers that do not train" in said
    # The stage looks again, for whoever comes without the check before the start.
    experts = "{kind: experts, level: block, sites: ['language.*.mlp'], experts: 2, rank: 2, alpha: 4}"
    changes = [f"stages.language.adapters=[{experts}]", "stages.language.trains=['connector.*']"]
    run = RunFolder.create(load(own_project, RunSpec, changes))
    status, said = mmmoe("work", run.path)
    assert status == USER_MISTAKE
    assert "stages.language.adapters.0.balance.weight" in " ".join(said.split())


def test_truncated_shard(own_project, mmmoe):
    tar = own_project.parent / "shards/shapes/shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    said = refused(mmmoe, own_project)
    assert "shard-000000.tar" in said
    assert "bytes" in said


def spoil(shards, numbers):
    """Overwrites the pictures of some samples inside their tar."""
    opened = ShardSet(shards)
    for number in numbers:
        shard, _ = opened.locate(number)
        offset, size = opened.entry(number).members["0.png"]
        with opened.shards[shard].path.open("r+b") as tar:
            tar.seek(offset)
            tar.write(b"x" * size)


def test_corrupt_image_is_set_aside_and_named(own_project, mmmoe):
    shards = own_project.parent / "shards/shapes"
    spoil(shards, [5])
    run = RunFolder.create(load(own_project, RunSpec, ["evaluation=null", "stages.align.training.steps=26"]))
    status, said = mmmoe("work", run.path)
    assert status == 0, said
    kept = (run.stage("align") / "quarantine.0.jsonl").read_text()
    assert len(kept.splitlines()) == 1
    assert "s5" in kept
    status, said = mmmoe("data", "check", shards)
    assert status == USER_MISTAKE
    assert "s5" in said


def test_too_many_corrupt_images_stop_the_run(own_project, mmmoe):
    spoil(own_project.parent / "shards/shapes", range(32))
    changes = ["stages.align.mixture.bad_samples=2", "stages.align.training.steps=26"]
    run = RunFolder.create(load(own_project, RunSpec, changes))
    status, said = mmmoe("work", run.path)
    assert status == USER_MISTAKE
    assert "more than bad_samples = 2" in " ".join(said.split())
    assert "mmmoe data check" in " ".join(said.split())


def test_json_without_a_field(own_project, mmmoe):
    folder = own_project.parent
    rows = json.loads((folder / "shapes.json").read_text())
    del rows[3]["conversations"]
    rows[7]["image"] = "gone.png"
    (folder / "shapes.json").write_text(json.dumps(rows))
    status, said = mmmoe("data", "pack", folder / "shapes.json", folder / "images", folder / "new")
    assert status == USER_MISTAKE
    assert "row 3" in said
    assert "conversations" in said
    assert "row 7" in said
    assert "gone.png" in said
    assert not list((folder / "new").glob("*.tar"))


def test_port_that_is_taken(own_project, mmmoe):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"engine.port: {port} is taken" in refused(mmmoe, own_project, f"engine.port={port}")


def test_too_little_data_for_a_batch(own_project, mmmoe):
    said = refused(mmmoe, own_project, "stages.language.training.batch=100")
    assert "96 samples are fewer than one batch of 100" in said


def test_batch_too_small_for_the_processes(own_project, mmmoe):
    said = refused(mmmoe, own_project, "stages.align.training.batch=2", "engine.processes=4")
    assert "2 samples cannot be shared by 4 processes" in said


def test_folder_that_is_no_run_or_in_use(own_project, mmmoe):
    status, said = mmmoe("resume", own_project.parent)
    assert status == USER_MISTAKE
    assert "is not a run folder" in said
    run = RunFolder.create(load(own_project, RunSpec))
    with run.lock():
        status, said = mmmoe("resume", run.path)
    assert status == USER_MISTAKE
    assert "in use by another run" in " ".join(said.split())


def test_full_disk_keeps_the_checkpoints_before(own_project, mmmoe, monkeypatch):
    run = RunFolder.create(load(own_project, RunSpec, ["evaluation=null"]))
    writes = []
    room = checkpoint._require_room

    def fill_up(folder, *parts):
        writes.append(folder)
        if len(writes) == 3:  # step 2, step 4, then the final one of the first stage
            raise OSError(28, "No space left on device")
        room(folder, *parts)

    monkeypatch.setattr(checkpoint, "_require_room", fill_up)
    status, said = mmmoe("work", run.path)
    assert status == NO_ROOM
    assert "resume" in said
    steps = run.stage("language") / "checkpoints"
    assert [path.name for path in all_steps(steps)] == ["step_000002", "step_000004"]
    assert checkpoint.latest_valid(steps) is not None
    monkeypatch.undo()


def test_stages_in_the_wrong_order(own_project, mmmoe):
    said = refused(mmmoe, own_project, "stages.align.init_from=mole")
    assert "stages.align.init_from: 'mole' comes later in this run" in said
    assert "language, align, mole" in said


def test_checkpoint_of_another_model(own_project, mmmoe):
    run = RunFolder.create(load(own_project, RunSpec, ["evaluation=null"]))
    status, said = mmmoe("work", run.path)
    assert status == 0, said
    shutil.move(run.path, own_project.parent / "kept")
    shutil.rmtree(own_project.parent / "runs")
    final = own_project.parent / "kept/stages/align/final"
    said = refused(
        mmmoe,
        own_project,
        f"stages.mole.init_from={final}",
        "model.language.config.hidden_size=64",
        "model.image_bounds=false",
    )
    assert "holds another model" in said
    assert "language.config.hidden_size: 32 there, 64 here" in said
    assert "image_bounds: True there, False here" in said
