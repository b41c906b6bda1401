"""What lmms-eval loads of us by itself: the name of our model, and where its class is.

It loads this for whatever model it is asked for, so nothing heavy is imported here.
"""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Returns the entry of `--model mmmoe`."""
    return ModelManifest(model_id="mmmoe", simple_class_path="mmmoe.bridges.lmms.MmmoeLmms")
