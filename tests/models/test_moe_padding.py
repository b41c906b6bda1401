"""Padding takes no expert's place, and nothing is dropped outside training."""

from __future__ import annotations

import torch
from test_moe import WIDTH, dense_block, sparse, unlike

from mmmoe.models.moe.spec import GateSpec

TIGHT = GateSpec(k=1, weights="softmax", capacity_factor=0.5, min_capacity=1)


def served(layer, x_BTD, mask_BT):
    with layer.tape.recording(None, mask_BT):
        return layer(x_BTD).abs().sum(-1) > 0


def test_padding_of_earlier_rows_does_not_crowd_out_the_tokens_of_later_ones() -> None:
    layer = unlike(sparse(dense_block(), gate=TIGHT)).train()
    layer.router.weight.data.zero_()
    layer.router.weight.data[0] = 1.0  # everything prefers one expert
    x_BTD = torch.rand(2, 8, WIDTH) + 0.1
    mask_BT = torch.ones(2, 8, dtype=torch.bool)
    mask_BT[0, 2:] = False
    # Half of 16 positions over 4 experts: two places, which the two real tokens of the first row take.
    assert served(layer, x_BTD, mask_BT).nonzero().tolist() == [[0, 0], [0, 1]]
    mask_BT[0] = False
    assert served(layer, x_BTD, mask_BT).nonzero().tolist() == [[1, 0], [1, 1]]


def test_evaluation_drops_nothing_so_a_row_does_not_depend_on_its_neighbours() -> None:
    layer = unlike(sparse(dense_block(), gate=TIGHT)).eval()
    x_BTD, mask_BT = torch.randn(3, 8, WIDTH), torch.ones(3, 8, dtype=torch.bool)
    assert served(layer, x_BTD, mask_BT).all()
    together = layer(x_BTD)
    for row in range(3):
        torch.testing.assert_close(layer(x_BTD[row : row + 1]), together[row : row + 1], atol=1e-6, rtol=1e-5)
