"""Checkpoints that are damaged or hostile: read as they were written, or refused."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import strategies as st
from mutations import damaged, odd_json

from mmmoe.engine import checkpoint
from mmmoe.engine.checkpoint import MANIFEST, MODEL, OPTIMIZER, STATE, CheckpointState

TENSORS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([0.5, -1.0])}
SAID = CheckpointState(12, {"stage": {"name": "align"}, "model": {}}, "abc", {"data": 4}, {"seconds": 1.5})


@pytest.fixture
def sound(tmp_path):
    """Returns the folder of a checkpoint and its files' bytes."""
    path = checkpoint.write(tmp_path, SAID, TENSORS, {f"exp_avg.{name}": t for name, t in TENSORS.items()})
    return path, {name: (path / name).read_bytes() for name in (MANIFEST, MODEL, OPTIMIZER, STATE)}


def put_back(path, files):
    for name, content in files.items():
        (path / name).write_bytes(content)


def same(held):
    assert held.state == SAID
    assert held.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(held.tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(torch.equal(held.moments[f"exp_avg.{name}"], TENSORS[name]) for name in TENSORS)
    return "same"


def test_damaged_checkpoints_are_refused_or_the_same(fuzz, sound):
    path, files = sound
    wound = st.one_of(
        *(st.tuples(st.just(name), damaged(content)) for name, content in files.items()),
        st.tuples(st.just(MANIFEST), odd_json(json.loads(files[MANIFEST])).map(lambda odd: json.dumps(odd).encode())),
    )

    def read(given):
        name, content = given
        put_back(path, files)
        (path / name).write_bytes(content)
        is_sound = not checkpoint.verify(path)
        held = checkpoint.read(path)
        assert is_sound
        return same(held)

    seen = fuzz(wound, read)
    assert seen["refused"] > seen["same"]


def test_checkpoints_that_lie_and_hash_right_are_read_or_refused(fuzz, sound):
    path, files = sound
    wound = st.one_of(
        st.tuples(st.just(STATE), odd_json(json.loads(files[STATE])).map(lambda odd: json.dumps(odd).encode())),
        *(st.tuples(st.just(name), damaged(files[name])) for name in (MODEL, OPTIMIZER, STATE)),
        st.tuples(st.just(MODEL), odd_header(files[MODEL])),
    )

    def read(given):
        name, content = given
        put_back(path, files)
        (path / name).write_bytes(content)
        manifest = json.loads(files[MANIFEST])
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / MANIFEST).write_text(json.dumps(manifest))
        assert checkpoint.verify(path) == []
        checkpoint.read(path)
        return "read"

    assert fuzz(wound, read)["refused"] > 0


def odd_header(content):
    """Draws a safetensors file whose JSON header is odd, with the length in front made right."""
    size = int.from_bytes(content[:8], "little")

    def framed(odd):
        text = json.dumps(odd).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return odd_json(json.loads(content[8 : 8 + size])).map(framed)


@pytest.mark.parametrize("files", ["{}", "[]", '{"../model.safetensors": {}}', '{"state.json": {"bytes": 1}}'])
def test_a_manifest_that_names_other_files_is_no_checkpoints(sound, files):
    path, _ = sound
    (path / MANIFEST).write_text(f'{{"version": 1, "files": {files}}}')
    assert checkpoint.verify(path)[0].startswith("manifest.json is damaged")
