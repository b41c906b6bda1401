"""Layers recomputed in the backward pass instead of keeping their activations, in networks of transformers."""

from __future__ import annotations

from typing import Any


def recompute_layers(network: Any, enabled: bool) -> None:
    """Switches the recomputing of each layer of a transformers model on or off; it happens in training mode only."""
    # transformers renamed these two in 5.2x and warns at the old names.
    prefix = "activation" if hasattr(network, "activation_checkpointing_enable") else "gradient"
    if enabled:
        getattr(network, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(network, f"{prefix}_checkpointing_disable")()
