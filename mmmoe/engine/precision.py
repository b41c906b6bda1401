"""Number formats of a run: what the model computes in and how a batch is brought to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmmoe import dist
from mmmoe.config.ids import CANVAS_VIEW
from mmmoe.engine.spec import EngineSpec


def engine_device(spec: EngineSpec) -> torch.device:
    """Returns the device a spec asks for."""
    return torch.device("cpu") if spec.device == "cpu" else dist.device()


def compute_dtype(spec: EngineSpec) -> torch.dtype:
    """Returns the format of weights and activations."""
    return torch.bfloat16 if spec.precision == "bf16" else torch.float32


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Brings the weights to the run's format; buffers (rotary frequencies) keep theirs.

    In a float32 run that is what trains: frozen weights stay in the format the model declares for them.
    """
    for parameter in module.parameters():
        is_concerned = dtype != torch.float32 or parameter.requires_grad
        if is_concerned and parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def cast_inputs(inputs: Mapping[str, object], dtype: torch.dtype) -> dict[str, object]:
    """Returns the inputs with floating tensors (media, features; also those in mappings) in the model's format.

    Images that are to be drawn stay as they are: their noise is added, and their loss taken, in float32.
    """
    return {name: _cast(value, dtype) for name, value in inputs.items()}


def to_host(tensor: Tensor) -> Tensor:
    """Returns a float32 copy on the CPU that later steps do not touch."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Mapping):
        return {name: inner if name == CANVAS_VIEW else _cast(inner, dtype) for name, inner in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
