"""Maps of four sizes from the one map of a frozen tower."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from mmmoe.models.build import build_tower
from mmmoe.models.towers.simple_pyramid import SimplePyramidTower
from mmmoe.models.towers.spec import SimplePyramidTowerSpec
from mmmoe.models.towers.tower import ImageTower

DINO = {
    "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 56,
}  # fmt: skip


@pytest.fixture(scope="module")
def spec():
    return SimplePyramidTowerSpec(tower={"kind": "dinov2", "config": DINO})


@pytest.fixture(scope="module")
def tower(spec):
    torch.manual_seed(0)
    return build_tower(spec)


def test_features_are_the_towers_own_and_carry_its_key(tower):
    pixels = torch.randn(2, 3, 56, 56)
    assert torch.equal(tower.encode(pixels), tower.body.encode(pixels))
    assert tower.key == tower.body.key
    assert (tower.num_tokens, tower.channels, tower.grid) == (16, 16, (4, 4))
    assert (tower.image_size, tower.mean, tower.std, tower.fit) == (
        tower.body.image_size, tower.body.mean, tower.body.std, tower.body.fit
    )  # fmt: skip
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_tokens_are_the_mean_and_the_cells(tower):
    cells = torch.randn(3, 16, 16)
    tokens, _ = tower.split(cells)
    torch.testing.assert_close(tokens[:, 0], cells.mean(1))
    assert torch.equal(tokens[:, 1:], cells)


def test_maps_are_four_two_one_and_half_a_cell(tower):
    cells = torch.randn(3, 16, 16)
    _, maps = tower.split(cells)
    assert tower.sides == (16, 8, 4, 2)
    assert [one.shape for one in maps] == [(3, side * side, 16) for side in tower.sides]
    assert torch.equal(maps[2], cells)
    grid = rearrange(cells, "i (h w) c -> i h w c", h=4)
    means = torch.stack([grid[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)], dim=1)
    torch.testing.assert_close(maps[3], means)
    # A plane stays one: bilinear, measured from the cells' middles, away from the edge.
    plane = torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 16)
    _, (_, twice, *_) = tower.split(plane)
    torch.testing.assert_close(twice[0, :8, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_gradients_reach_through_split_alone(tower):
    cells = torch.randn(1, 16, 16, requires_grad=True)
    tokens, maps = tower.split(cells)
    (tokens.sum() + sum(one.sum() for one in maps)).backward()
    # Sums: tokens 1 and 1/16 of the mean; bilinear maps of 16 and 4 times the cells, the cells, and a quarter of them.
    torch.testing.assert_close(cells.grad.sum(), torch.tensor(16 * 16 * (1 + 1 / 16 + 16 + 4 + 1 + 0.25)))


def test_a_meta_build_reads_nothing(spec):
    with torch.device("meta"):
        assert build_tower(spec, meta=True).sides == (16, 8, 4, 2)


def test_what_is_no_square_map_is_refused():
    class Strip(ImageTower):
        grid, num_tokens, channels, image_size = (2, 4), 8, 4, 8

    with pytest.raises(ValueError, match="one square map of an even side, got 8 vectors for a grid of 2 x 4"):
        SimplePyramidTower(Strip())
