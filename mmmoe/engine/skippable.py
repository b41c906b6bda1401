"""Parts of a model that some batches do not run, kept out of ZeRO 3's sight."""

from __future__ import annotations

import torch
from torch import nn


def hide_skippable(module: nn.Module, device: torch.device) -> list[tuple[nn.Module, str]]:
    """Takes submodules that call themselves `is_skippable` out of the module tree; they stay attributes, whole.

    ZeRO 3 gathers a weight on all processes at once. One whose batch has no image never calls the tower, and the
    others would wait for it for ever; marking its weights persistent does not help before DeepSpeed has seen a
    full step (0.19.8, PartitionedParameterCoordinator.release_sub_module). A tower that trains runs in every batch,
    says so, and is sharded as the rest.

    Raises:
        ValueError: A submodule that some batches do not run is to be trained.
    """
    hidden = [
        (parent, name)
        for parent in module.modules()
        for name, child in parent.named_children()
        if getattr(child, "is_skippable", False)
    ]
    for parent, name in hidden:
        child = parent._modules.pop(name)
        assert child is not None
        parent.__dict__[name] = child.to(device)
        if any(parameter.requires_grad for parameter in child.parameters()):
            show_hidden(hidden)
            raise ValueError(f"'{name}' trains, but some batches do not run it: take engine.zero 2 or freeze it")
    return hidden


def show_hidden(hidden: list[tuple[nn.Module, str]]) -> None:
    """Puts hidden submodules back into the tree."""
    for parent, name in hidden:
        if name in parent.__dict__:
            parent._modules[name] = parent.__dict__.pop(name)
