"""The Frechet distance against closed forms, and on covariances without an inverse."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmmoe.evaluation.drawing import Jury, as_picture
from mmmoe.evaluation.frechet import Spread, distance_of_sets, frechet_distance, spread
from mmmoe.evaluation.inception import inception
from mmmoe.evaluation.questions import Question
from mmmoe.models.towers.spec import OnnxTowerSpec


def gaussian(mean, covariance):
    return Spread(np.asarray(mean, dtype=float), np.atleast_2d(np.asarray(covariance, dtype=float)))


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_in_one_dimension_it_is_the_distance_of_means_and_deviations():
    assert frechet_distance(gaussian([3.0], 4.0), gaussian([-1.0], 9.0)) == pytest.approx(16.0 + (2.0 - 3.0) ** 2)


def test_covariances_that_commute_give_the_distance_of_their_roots():
    basis = rotation(8, 0)
    a, b = np.linspace(0.0, 4.0, 8), np.linspace(9.0, 1.0, 8)
    covariances = [basis @ np.diag(values) @ basis.T for values in (a, b)]
    shift = np.arange(8.0)
    found = frechet_distance(gaussian(shift, covariances[0]), gaussian(-shift, covariances[1]))
    assert found == pytest.approx(4 * (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


def test_a_linear_map_of_a_standard_gaussian():
    """tr (C_a C_b)^(1/2) with C_a = 1 is the trace of C_b's root, whatever its axes."""
    basis, values = rotation(6, 1), np.array([0.0, 1e-12, 1.0, 4.0, 9.0, 100.0])
    found = frechet_distance(gaussian(np.zeros(6), np.eye(6)), gaussian(np.zeros(6), basis @ np.diag(values) @ basis.T))
    assert found == pytest.approx(6 + values.sum() - 2 * np.sqrt(values).sum(), rel=1e-9)


def test_two_by_two_against_the_formula_by_trace_and_determinant():
    """tr A^(1/2) = (tr A + 2 det(A)^(1/2))^(1/2) for a 2 x 2 product A of positive matrices that do not commute."""
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet_distance(gaussian([0, 0], a), gaussian([1, 2], b))
    assert found == pytest.approx(5 + np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)


def test_fewer_images_than_features_are_no_trouble():
    rows = np.random.default_rng(2).normal(size=(20, 300)) * 10
    own, other = spread(rows), spread(rows + 1.0)
    assert frechet_distance(own, own) == pytest.approx(0.0, abs=1e-7)
    assert frechet_distance(own, other) == pytest.approx(300.0, rel=1e-9)
    assert frechet_distance(own, other) == pytest.approx(frechet_distance(other, own))


def test_sets_of_images_by_an_extractor_and_without():
    pixels = torch.rand(70, 3, 4, 4)
    means = lambda batch: batch.mean((2, 3))  # noqa: E731
    found = distance_of_sets(pixels, pixels * 0.5, means, batch=32)
    rows = pixels.double().mean((2, 3)).numpy()
    assert found == pytest.approx(frechet_distance(spread(rows), spread(rows * 0.5)), rel=1e-4)


def test_features_that_make_no_spread_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        spread(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        spread(np.array([[1.0], [np.nan]]))


def test_fid_takes_its_networks_features_of_pictures_resized_and_normalised(tmp_path):
    """The network is a small one with one pooled cell, as Inception's last has."""
    weight = np.random.default_rng(3).normal(size=(5, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["cells"]),
        helper.make_node("GlobalAveragePool", ["cells"], ["pooled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "inception",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", 5, 1, 1])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "fid.onnx"
    )
    half = (0.5, 0.5, 0.5)
    declared = {"output": "pooled", "channels": 5, "grid": (1, 1), "image_size": 8, "mean": half, "std": half}
    extractor = inception(OnnxTowerSpec(path=str(tmp_path / "fid.onnx"), **declared))
    pixels = torch.rand(6, 3, 4, 4)
    fitted = torch.nn.functional.interpolate(pixels, (8, 8), mode="bilinear", align_corners=False) * 2 - 1
    expected = fitted.mean((2, 3)) @ torch.from_numpy(weight[:, :, 0, 0]).T
    torch.testing.assert_close(extractor(pixels), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"evaluation\.drawing\.fid: path .*none\.onnx"):
        inception(OnnxTowerSpec(path=str(tmp_path / "none.onnx"), **declared))
    questions = [Question(str(n), "draw", "x", reference=tmp_path / f"{n}.png") for n in range(6)]
    for number, one in enumerate(pixels):
        as_picture(one).save(tmp_path / f"{number}.png")
        as_picture(one.flip(0)).save(tmp_path / f"drawn{number}.png")
    drawn = [str(tmp_path / f"drawn{n}.png") for n in range(6)]
    found = Jury(Nobody(), inception=extractor).measures(questions, ["x"] * 6, drawn)
    same = Jury(Nobody(), inception=extractor).measures(questions, ["x"] * 6, [str(q.reference) for q in questions])
    assert {"clip_score", "frechet"} & set(found) == set()
    assert same["fid"] == pytest.approx(0.0, abs=1e-6)
    assert found["fid"] > 0.01


class Nobody:
    """Reads the same everywhere."""

    def read(self, pictures):
        return ["x"] * len(pictures)
