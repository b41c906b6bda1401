"""The OCR judge: CTC decoding, pictures of all shapes in one batch, and what the real network reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from matplotlib import get_data_path
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

from mmmoe.evaluation.judge import OcrJudge, decoded
from mmmoe.evaluation.writing import is_same

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "data/local/mova/packages/rapidocr/PP-OCRv6_rec_small.onnx"
RED, GREEN, BLUE, WHITE = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (1.0, 1.0, 1.0)


def colour_reader(path, letters="A\nB"):
    """Writes a recogniser of columns 8 wide: red is A, green B, blue a space, all else no letter."""
    weight = np.zeros((4, 3, 48, 8), dtype=np.float32)
    for number, colour in enumerate((2, 1, 0), start=1):  # blue comes first
        weight[number] = -1.0 / (48 * 8)
        weight[number, colour] *= -1
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight", "bias"], ["cells"], strides=[48, 8]),
            helper.make_node("Squeeze", ["cells", "rows"], ["columns"]),
            helper.make_node("Transpose", ["columns"], ["scores"], perm=[0, 2, 1]),
        ],
        "reader",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 48, "W"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "T", 4])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1, 0, 0, 0], dtype=np.float32), "bias"),
            numpy_helper.from_array(np.array([2]), "rows"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if letters is not None:
        helper.set_model_props(model, {"character": letters})
    onnx.save_model(model, path)
    return path


def stripes(*colours, rows=48, columns=8):
    return torch.tensor(colours).t()[:, None, :, None].expand(3, rows, len(colours), columns).flatten(2)


@pytest.mark.parametrize(
    ("classes", "text"),
    [([], ""), ([0, 0], ""), ([1, 1, 0, 1, 2, 2, 3], "AAB "), ([0, 2, 2, 2], "B"), ([1, 2, 1], "ABA")],
)
def test_decoding(classes, text):
    assert decoded(classes, ["", "A", "B", " "]) == text


def test_runs_are_one_letter_and_padding_is_none(tmp_path):
    judge = OcrJudge(colour_reader(tmp_path / "reader.onnx"))
    shown = torch.stack([stripes(RED, RED, WHITE, RED, GREEN, BLUE), stripes(WHITE, GREEN, BLUE, RED, WHITE, WHITE)])
    assert judge.read(shown) == ["AAB ", "B A"]
    assert judge.read(shown[:0]) == []


def test_pictures_of_all_sizes_are_read_as_one_by_one(tmp_path):
    judge = OcrJudge(colour_reader(tmp_path / "reader.onnx"), batch=2)
    colours = [[RED], [GREEN, RED] * 30, [RED, WHITE, RED], [BLUE, RED], [GREEN] * 3, [RED, GREEN] * 25]
    scales = [1, 2, 1, 4, 1, 1]
    tensors = [stripes(*row, rows=48 * s, columns=8 * s) for row, s in zip(colours, scales, strict=True)]
    pictures = [Image.fromarray((one.permute(1, 2, 0).numpy() * 255).astype(np.uint8)) for one in tensors]
    together = judge.read(pictures)
    assert together == [judge.read([one])[0] for one in pictures] == [judge.read(one[None])[0] for one in tensors]
    assert together == ["A", "BA" * 30, "AA", " A", "B", "AB" * 25]


def test_what_is_missing_or_another_network_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no OCR judge at .*reader\.onnx; put rapidocr/models/PP-OCRv6_rec_small"):
        OcrJudge(tmp_path / "reader.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*broken\.onnx"):
        OcrJudge(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match="carries no letters"):
        OcrJudge(colour_reader(tmp_path / "mute.onnx", letters=None))
    judge = OcrJudge(colour_reader(tmp_path / "other.onnx", letters="A\nB\nC"))
    with pytest.raises(ValueError, match="has 4 classes and 5 letters"):
        judge.read(stripes(RED)[None])


@pytest.mark.skipif(not REAL.is_file(), reason="needs data/local/mova (python data/prepare_mova.py)")
def test_the_real_network_reads_printed_words():
    words = ["HELLO", "Sale", "open", "42", "Main St", "coffee", "EXIT", "TextHarmony", "a cup of tea", "B2B"]
    fonts = [Path(get_data_path()) / f"fonts/ttf/DejaVu{name}.ttf" for name in ("Sans", "Serif", "SansMono-Bold")]
    pictures = []
    for word in words:
        for place, font in enumerate(fonts):
            drawn = ImageFont.truetype(font, 18 + 4 * place)
            left, top, right, bottom = map(int, drawn.getbbox(word))
            paper, ink = [((255, 255, 255), (0, 0, 0)), ((20, 60, 120), (250, 230, 90))][place % 2]
            picture = Image.new("RGB", (right - left + 12, bottom - top + 10), paper)
            ImageDraw.Draw(picture).text((6 - left, 5 - top), word, ink, drawn)
            pictures.append(picture)
    judge = OcrJudge(REAL)
    read = judge.read(pictures)
    wanted = [word for word in words for _ in fonts]
    assert sum(map(is_same, read, wanted)) >= 0.9 * len(wanted), list(zip(read, wanted, strict=True))
    assert judge.read(pictures[4:5]) == read[4:5]
    assert judge.read([Image.new("RGB", (96, 32), "white")]) == [""]
