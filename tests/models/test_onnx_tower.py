"""Networks in ONNX files as towers: what comes out, what a plan can count, refusals."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mmmoe.models.build import build_tower
from mmmoe.models.counts import parameter_table
from mmmoe.models.towers.onnx_weights import onnx_weights
from mmmoe.models.towers.spec import OnnxTowerSpec
from mmmoe.models.weights import weight_files, weight_problems


def network(path, *, batch="N", seed=0, is_external=False, inputs=("pixels",)):
    """Writes a convolution of 4 x 4 cells and a further output, and returns the convolution in torch."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, 5, 4, stride=4)
    initialisers = [
        numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in convolution.named_parameters()
    ]
    nodes = [
        helper.make_node("Conv", ["pixels", "weight", "bias"], ["cells"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["cells"], ["pooled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "expert",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, 8, 8]) for name in inputs],
        [
            helper.make_tensor_value_info("cells", TensorProto.FLOAT, [batch, 5, 2, 2]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [batch, 5, 1, 1]),
        ],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    external = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0}
    onnx.save_model(model, path, **(external if is_external else {}))
    return convolution


def spec(path, **changes):
    values = {
        "path": str(path), "output": "cells", "channels": 5, "grid": (2, 2), "image_size": 8,
        "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6),
    }  # fmt: skip
    return OnnxTowerSpec(**(values | changes))


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_an_output_map_comes_out_in_reading_order(batch, order, tmp_path):
    convolution = network(tmp_path / "expert.onnx", batch=batch)
    tower = build_tower(spec(tmp_path / "expert.onnx", order=order))
    pixels = torch.randn(3, 3, 8, 8)
    features = tower(pixels)
    with torch.no_grad():
        want = convolution(pixels.flip(1) if order == "bgr" else pixels)
    torch.testing.assert_close(features, want.flatten(2).transpose(1, 2))
    torch.testing.assert_close(features[:, 1 * 2 + 0], want[:, :, 1, 0])
    assert (tower.grid, tower.num_tokens, tower.channels) == ((2, 2), 4, 5)
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    low = tower.bfloat16()(pixels.bfloat16())
    torch.testing.assert_close(low, features, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("is_external", [False, True])
def test_a_plan_counts_the_weights_without_loading_them(is_external, tmp_path):
    path = tmp_path / "expert.onnx"
    convolution = network(path, is_external=is_external)
    count = sum(parameter.numel() for parameter in convolution.parameters())
    beside = [tmp_path / "expert.onnx.data"] if is_external else []
    found = onnx_weights(path)
    assert (found.count, list(found.files)) == (count, [path, *beside])
    assert weight_files(spec(path)) == [path, *beside]
    with torch.device("meta"):
        tower = build_tower(spec(path), meta=True)
    model = nn.Module()
    model.tower, model.connector = tower, nn.Linear(5, 2)
    rows = {row.part: row for row in parameter_table(model)}
    assert (rows["tower"].total, rows["tower"].trainable, tower.sessions) == (count, 0, {})
    assert (rows["connector"].total, rows["connector"].trainable) == (12, 12)


def test_the_key_tells_weights_inside_and_beside_and_options_apart(tmp_path):
    keys = set()
    for is_external in (False, True):
        for seed in (0, 1):
            path = tmp_path / f"{is_external}{seed}.onnx"
            network(path, seed=seed, is_external=is_external)
            keys.add(build_tower(spec(path)).key)
    again = build_tower(spec(path)).key
    assert again in keys
    (tmp_path / "True1.onnx.data").write_bytes((tmp_path / "True0.onnx.data").read_bytes())
    keys.add(build_tower(spec(path)).key)
    changes = [{"order": "bgr"}, {"std": (1, 1, 1)}, {"output": "pooled", "grid": (1, 1)}]
    keys |= {build_tower(spec(path, **change)).key for change in changes}
    assert len(keys) == 8


@pytest.mark.parametrize(("changes", "said"), [
    ({"output": "pool"}, r"no output 'pool'; tower.output is one of \['cells', 'pooled'\]"),
    ({"channels": 6}, r"\(N, C, H, W\) with \(6, 2, 2\); correct"),
    ({"grid": (2, 3)}, r"\(N, C, H, W\) with \(5, 2, 3\); correct"),
    ({"image_size": 16}, r"takes pixels tensor\(float\) .* the tower gives .* \(3, 16, 16\)"),
])  # fmt: skip
def test_a_file_that_is_not_what_is_declared_is_refused(changes, said, tmp_path):
    network(tmp_path / "expert.onnx")
    with pytest.raises(ValueError, match=said):
        build_tower(spec(tmp_path / "expert.onnx", **changes))


def test_refusals_of_files(tmp_path):
    missing = spec(tmp_path / "no.onnx")
    assert list(weight_problems(missing)) == [f"path: no file {missing.path}; put the ONNX file there"]
    assert weight_files(missing) == []
    assert build_tower(missing, meta=True).num_constants == 0
    with pytest.raises(ValueError, match=r"no\.onnx does not exist"):
        build_tower(missing)
    (tmp_path / "text.onnx").write_text("this is no network, whatever its name says" * 9)
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file"):
        build_tower(spec(tmp_path / "text.onnx"))
    network(tmp_path / "two.onnx", batch=2)
    with pytest.raises(ValueError, match="takes 2 images at a time"):
        build_tower(spec(tmp_path / "two.onnx"))
    network(tmp_path / "beside.onnx", is_external=True)
    (tmp_path / "beside.onnx.data").unlink()
    with pytest.raises(ValueError, match=r"in files that are missing: .*beside\.onnx\.data"):
        build_tower(spec(tmp_path / "beside.onnx"))
    network(tmp_path / "inputs.onnx", inputs=("pixels", "mask"))
    with pytest.raises(ValueError, match="the tower gives one float input"):
        build_tower(spec(tmp_path / "inputs.onnx"))
    whole = (tmp_path / "two.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.onnx is no ONNX file"):
        onnx_weights(tmp_path / "cut.onnx")
