"""BERT (arXiv 1810.04805): what turns the questions about an image into one vector for MoVA's gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BertModel

from mmmoe.models.folder import declared_config, pretrained, state_digest
from mmmoe.models.towers.spec import BertTextSpec
from mmmoe.models.towers.tower import Tower

KEPT = 32_768
"""Vectors of different questions that are kept; the texts of a benchmark repeat themselves from picture to picture."""


class BertText(Tower):
    """The last hidden state of [CLS]; questions seen before are not encoded again.

    A frozen one takes questions one by one: sums in a batch come out a little otherwise beside other rows, and a run
    that goes on after a crash has not seen what the undisturbed one has.
    """

    kind = "text"
    num_tokens = 1

    def __init__(self, spec: BertTextSpec, *, meta: bool = False) -> None:
        super().__init__()
        config = declared_config(spec.path, spec.config, "text", ("bert",))
        if spec.max_tokens > config.max_position_embeddings:
            raise ValueError(
                f"text.max_tokens is {spec.max_tokens}, but this BERT has {config.max_position_embeddings} positions"
            )
        if spec.path is None or meta:
            self.encoder: Any = BertModel(config, add_pooling_layer=False)
            weights = state_digest(self.encoder)
        else:
            self.encoder, weights = pretrained(BertModel, spec.path, spec.config, "text.config", "BERT", "encoder.")
            self.encoder.pooler = None
        if spec.layers is not None and spec.layers > config.num_hidden_layers:
            raise ValueError(f"text.layers is {spec.layers}, but this BERT has {config.num_hidden_layers}")
        self.encoder.encoder.layer = self.encoder.encoder.layer[: spec.layers]
        self.channels = int(config.hidden_size)
        self.pad_id = int(config.pad_token_id or 0)
        self.key = f"bert-{weights}-{len(self.encoder.encoder.layer)}layers"
        self._known: dict[tuple[int, ...], Tensor] = {}
        self.freeze()

    def forward(self, ids_IL: Tensor) -> Tensor:
        """Returns vectors (I, T) of rows of ids, padded on the right."""
        if self.is_trained:
            self._known.clear()
            return self._encoded(ids_IL)
        rows = [tuple(row) for row in ids_IL.tolist()]
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        if len(self._known) + len(new) > KEPT:
            self._known.clear()
            new = list(dict.fromkeys(rows))
        with torch.no_grad():
            for row in new:
                self._known[row] = self._encoded(torch.tensor([row], device=ids_IL.device))[0]
        return torch.stack([self._known[row] for row in rows]).to(ids_IL.device)

    def _encoded(self, ids_IL: Tensor) -> Tensor:
        mask_IL = ids_IL != self.pad_id
        longest = int(mask_IL.sum(1).max())
        ids_IL, mask_IL = ids_IL[:, :longest], mask_IL[:, :longest]
        vector_IT: Tensor = self.encoder(input_ids=ids_IL, attention_mask=mask_IL).last_hidden_state[:, 0]
        return vector_IT
