"""The model as it was before any image was seen, which a trained one is held against."""

from __future__ import annotations

from pathlib import Path

import torch

from mmmoe import paths
from mmmoe.models.build import add_adapters, build_model
from mmmoe.models.keys import canonical
from mmmoe.models.mmfs.language import SynchronisedLayer
from mmmoe.models.spliced import SplicedModel
from mmmoe.stages.handover import tensors_of
from mmmoe.stages.heritage import Heritage
from mmmoe.stages.ledger import RunFolder

SYNCHRONISER = ("attn", "gate", "norm1", "norm2")
"""Parts of a synchronised layer that read images."""


def before_pictures(heritage: Heritage) -> SplicedModel:
    """Returns a finished stage's model with everything fresh but the language model's own weights.

    Those are what the last stage of text alone left, or the pretrained ones. Where a fresh language model (kind:
    scratch) learned with pictures from its first stage on, the whole model is fresh.
    """
    model = build_model(heritage.model, heritage.seed)
    found = last_of_text(heritage.path)
    if found is not None:
        _take_language(model, heritage if found == heritage.path else Heritage.read(found))
    # Whole experts copy the dense blocks, so they come when those hold what text has taught.
    add_adapters(model, heritage.adapters, heritage.seed)
    return model


def last_of_text(final: Path) -> Path | None:
    """Returns the last finished stage, up to a given one, before which and in which only the language model trained.

    A stage that trains a connector, a tower or a decoder sees what goes through it, and so may all that follow.
    """
    spec = RunFolder.open(final.parents[2]).spec()
    names = [stage.name for stage in spec.stages]
    place = names.index(final.parent.name)
    stage = spec.stages[place]
    start = stage.init_from or (names[place - 1] if place else None)
    before = None
    if start is not None:
        origin = RunFolder(final.parents[2]).final(start) if start in names[:place] else paths.resolve(start)
        before = last_of_text(origin)
        if before != origin:
            return before
    return final if all(pattern.startswith("language.") for pattern in stage.trains) else before


def _take_language(model: SplicedModel, heritage: Heritage) -> None:
    """Copies the language model's own weights: neither adapters nor its synchroniser."""
    reads_images = tuple(
        f"{canonical(name)}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, SynchronisedLayer)
        for part in SYNCHRONISER
    )
    own = tensors_of(model)
    with torch.no_grad():
        for name, tensor in heritage.checkpoint.tensors.items():
            if name.startswith("language.") and name in own and not name.startswith(reads_images):
                own[name].copy_(tensor)
