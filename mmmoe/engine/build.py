"""From an engine's declaration to the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from mmmoe.engine.expert_groups import ExpertGroups
from mmmoe.engine.groups import same_name
from mmmoe.engine.local import LocalEngine
from mmmoe.engine.protocol import Engine
from mmmoe.engine.spec import EngineSpec, TrainingSpec


def build_engine(
    module: nn.Module,
    spec: EngineSpec,
    training: TrainingSpec,
    canonical: Callable[[str], str] = same_name,
    experts: ExpertGroups | None = None,
) -> Engine:
    """Returns the engine of `spec.kind` around a model whose trainable parameters are already chosen.

    Args:
        module: The model; `groups.freeze` has set what trains.
        spec: The engine's declaration.
        training: The stage's training.
        canonical: Gives a parameter the name it has in checkpoints.
        experts: Who holds which experts, where a process does not hold all.
    """
    if spec.kind == "local":
        return LocalEngine(module, spec, training, canonical, experts)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # Imported here and nowhere else: inference, evaluation and the local engine work where DeepSpeed is not
    # installed, and importing it takes most of a second and probes for a compiler.
    from mmmoe.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, spec, training, canonical, experts)


def _is_news(record: logging.LogRecord) -> bool:
    """Lets all of DeepSpeed's messages pass but that a machine has no GPU, and that it does not know our AdamW.

    That one is torch's, with a switch.
    """
    told = record.getMessage()
    return "Setting accelerator to CPU" not in told and "ZeRO with an untested optimizer" not in told
