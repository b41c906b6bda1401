"""What a stage may add to a model: plain LoRA, routed LoRA experts, Slide-LoRA, a sparse mixture of whole experts."""

from __future__ import annotations

from torch import nn

from mmmoe.models.adapter_spec import AdapterSpec
from mmmoe.models.lora.inject import inject
from mmmoe.models.lora.routing import Routed
from mmmoe.models.moe.place import ExpertPlace
from mmmoe.models.moe.spec import MoESpec
from mmmoe.models.moe.upcycle import upcycle


def adapt(model: nn.Module, spec: AdapterSpec, place: ExpertPlace) -> Routed | None:
    """Puts one adapter into a model and returns its routers' balance and tape, None where it has none.

    Args:
        model: the whole model; sites are names in it.
        spec: the declaration.
        place: which whole experts this process holds; LoRA experts are held everywhere.

    Raises:
        ValueError: if a site is not there or does not take the adapter.
    """
    return upcycle(model, spec, place) if isinstance(spec, MoESpec) else inject(model, spec)
