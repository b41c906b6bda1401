import torch

from mmmoe.engine.precision import cast_inputs


def test_tensors_inside_mappings_are_cast_as_well():
    inputs = {
        "ids": torch.tensor([1]),
        "media": {"image": torch.ones(2), "number": torch.tensor([3])},
        "features": None,
    }
    cast = cast_inputs(inputs, torch.bfloat16)
    assert cast["ids"].dtype == cast["media"]["number"].dtype == torch.int64
    assert cast["media"]["image"].dtype == torch.bfloat16
    assert cast["features"] is None
    assert inputs["media"]["image"].dtype == torch.float32
