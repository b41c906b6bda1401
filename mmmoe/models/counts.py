"""Parameter counts by part of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mmmoe.models.keys import canonical
from mmmoe.models.lora.slide import SlideGate
from mmmoe.models.towers.tower import Tower

# A component of a parameter's name that marks an adapter -> the part it is counted under.
ADAPTERS = {"lora": "lora", "experts": "experts", "router": "routers"}


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part."""

    part: str
    total: int
    trainable: int


def parameter_table(model: nn.Module) -> list[PartCount]:
    """Returns one row a part: the model's children, then LoRA, experts and routers. Shared tensors count once.

    LoRA on whole experts counts as LoRA, LoRA experts as experts, and a Slide-LoRA's gate with the routers.
    """
    parts = [name for name, child in model.named_children() if not isinstance(child, SlideGate)]
    totals: dict[str, list[int]] = {name: [0, 0] for name in parts}
    for name, parameter in model.named_parameters():
        pieces = canonical(name).split(".")
        marks = [ADAPTERS[piece] for piece in pieces if piece in ADAPTERS]
        row = totals.setdefault(marks[-1] if marks else pieces[0], [0, 0])
        # DeepSpeed's third stage leaves an empty tensor and notes the size on it.
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        row[0] += size
        row[1] += size if parameter.requires_grad else 0
    for name, module in model.named_modules():
        if isinstance(module, Tower):
            totals[name.split(".")[0]][0] += module.num_constants
    return [PartCount(part, total, trainable) for part, (total, trainable) in totals.items()]
