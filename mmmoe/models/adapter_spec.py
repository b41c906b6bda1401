"""What a stage may add to a model, declared; apart from what builds it, so that a configuration is read in no time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmmoe.models.lora.spec import ExpertsSpec, LoRASpec, SlideLoRASpec
from mmmoe.models.moe.spec import MoESpec

AdapterSpec = Annotated[LoRASpec | ExpertsSpec | SlideLoRASpec | MoESpec, Field(discriminator="kind")]
