import torch

from mmmoe.config.ids import CANVAS_VIEW
from mmmoe.engine.precision import cast_inputs


def test_tensors_inside_mappings_are_cast_as_well():
    inputs = {
        "ids": torch.tensor([1]),
        "media": {"image": torch.ones(2), "number": torch.tensor([3])},
        "features": None,
        "canvases": {CANVAS_VIEW: torch.full((2,), 0.3)},
    }
    cast = cast_inputs(inputs, torch.bfloat16)
    assert cast["ids"].dtype == cast["media"]["number"].dtype == torch.int64
    assert cast["media"]["image"].dtype == torch.bfloat16
    assert cast["features"] is None
    assert torch.equal(cast["canvases"][CANVAS_VIEW], torch.full((2,), 0.3)), "what is to be drawn is not rounded"
    assert inputs["media"]["image"].dtype == torch.float32
