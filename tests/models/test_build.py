"""From declarations to models: seeds, meta builds, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
import torch
import yaml
from models_toy import CONFIG, lora_spec, mole_spec
from transformers import AutoModelForCausalLM, LlamaConfig

from mmmoe.models.build import TOWERS, add_adapters, build_model
from mmmoe.models.connectors.mlp import MLPConnector
from mmmoe.models.counts import parameter_table
from mmmoe.models.keys import canonical
from mmmoe.models.language import build_language
from mmmoe.models.spec import ConnectorSpec, PretrainedLanguage, ScratchLanguage, model_spec
from mmmoe.models.towers.spec import TowerSpec

ROOT = Path(__file__).resolve().parents[2]


def declared(name):
    return model_spec(yaml.safe_load((ROOT / f"models/llava_mole/{name}.yaml").read_text()))


def test_every_kind_of_tower_has_a_class_and_no_other_stands_in_the_table():
    assert set(TOWERS) == {kind.model_fields["kind"].default for kind in get_args(TowerSpec)}
    for place in TOWERS.values():
        assert callable(resolve_name(f"mmmoe.models.towers.{place}"))


def test_a_process_loads_the_libraries_of_its_own_model_alone():
    code = (
        "import sys, yaml\n"
        "import mmmoe.stages.run, mmmoe.stages.preflight\n"
        "from mmmoe.models.build import build_model\n"
        "from mmmoe.models.spec import model_spec\n"
        f"build_model(model_spec(yaml.safe_load(open({str(ROOT / 'models/llava_mole/tiny.yaml')!r}))), 0, meta=True)\n"
        "print(*sorted({'diffusers', 'open_clip', 'timm', 'deepspeed', 'matplotlib'} & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


@pytest.mark.parametrize("name", ["tiny", "small", "7b"])
def test_declared_models_build_from_configuration_alone(name):
    model = build_model(declared(name), seed=0, meta=True)
    add_adapters(model, [lora_spec(), mole_spec()], seed=0)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    rows = {row.part: row for row in parameter_table(model)}
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["tower"].trainable == 0


def test_small_has_the_size_of_smollm2():
    rows = {row.part: row.total for row in parameter_table(build_model(declared("small"), seed=0, meta=True))}
    assert rows["language"] == 134_515_008


def test_weights_are_a_function_of_the_seed_and_leave_the_generator_alone():
    spec = declared("tiny")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (build_model(spec, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    add_adapters(one, [mole_spec()], seed=1)
    add_adapters(two, [mole_spec()], seed=1)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.connector.layers[0].weight, other.connector.layers[0].weight)
    assert torch.equal(one.tower.head.convolution.weight, other.tower.head.convolution.weight)
    embedding = "language.model.embed_tokens.weight"
    assert not torch.equal(one.get_parameter(embedding), other.get_parameter(embedding))


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "lama"}, "model_type 'lama' is not known"),
    ({"hiden_size": 8}, r"fields that llama does not know: \['hiden_size'\]"),
])  # fmt: skip
def test_wrong_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_language(ScratchLanguage(config=CONFIG | changes, tokenizer="none"))


def test_too_many_positions_are_refused():
    spec = declared("tiny").model_copy(update={"max_positions": 513})
    with pytest.raises(ValueError, match="max_positions is 513, but the language model has 512"):
        build_model(spec, seed=0, meta=True)


@pytest.fixture
def folder(tmp_path):
    fields = {name: value for name, value in CONFIG.items() if name != "model_type"}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**fields)).save_pretrained(tmp_path)
    return tmp_path


def test_pretrained_weights_come_from_the_folder(folder):
    model = build_language(PretrainedLanguage(path=str(folder), config=CONFIG, dtype="bfloat16"))
    twin = build_language(PretrainedLanguage(path=str(folder)))
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.embed_tokens.weight, twin.model.embed_tokens.weight.bfloat16())


def test_folders_that_will_not_do_are_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="is no folder"):
        build_language(PretrainedLanguage(path="no/such/folder"))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        build_language(PretrainedLanguage(path=str(tmp_path_factory.mktemp("empty"))))
    with pytest.raises(ValueError, match="hidden_size: declared 64, found 32"):
        build_language(PretrainedLanguage(path=str(folder), config=CONFIG | {"hidden_size": 64}))
    with pytest.raises(ValueError, match="rope_parameters: declared"):
        build_language(PretrainedLanguage(path=str(folder), config=CONFIG | {"rope_theta": 5e5}))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lack 9 tensors"):
        build_language(PretrainedLanguage(path=str(folder)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors file"):
        build_language(PretrainedLanguage(path=str(folder)))


def test_canonical_names_leave_the_base_out():
    assert (
        canonical("language.model.layers.0.mlp.base.gate_proj.weight") == "language.model.layers.0.mlp.gate_proj.weight"
    )
    assert canonical("language.base_model.weight") == "language.base_model.weight"


def test_connector_positions():
    torch.manual_seed(0)
    plain, placed = (MLPConnector(ConnectorSpec(position_std=std), 6, 8, 500) for std in (0.0, 0.5))
    assert "position_PD" not in dict(plain.named_parameters())
    assert placed.position_PD.std().item() == pytest.approx(0.5, rel=0.05)
    placed.layers.load_state_dict(plain.layers.state_dict())
    x = torch.randn(2, 500, 6)
    torch.testing.assert_close(placed(x), plain(x) + placed.position_PD)
