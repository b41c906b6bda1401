"""Maps read beside a U-Net: nothing at first, the U-Net's own result otherwise, only where there is an image before."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmmoe.models.mmfs.spec import UNetSynchroniserSpec
from mmmoe.models.mmfs.unet import UNetSynchroniser

SIDES, CHANNELS, CONTEXT = (4, 2), 12, 10
SPEC = UNetSynchroniserSpec(heads=4, points=3, value_width=8)
KINDS = {
    "cross attention": ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"),
    "plain": ("DownBlock2D", "UpBlock2D", None),
}


def unet_of(kind="cross attention", layers=1, **fields):
    down, up, mid = KINDS[kind]
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=(down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up),
        mid_block_type=mid,
        block_out_channels=(16, 32),
        layers_per_block=layers,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=CONTEXT,
        **fields,
    ).eval()


def beside(unet, grid=(8, 8), is_open=False):
    torch.manual_seed(1)
    net = UNetSynchroniser(SPEC, unet.config, CHANNELS, SIDES, grid)
    if is_open:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def inputs(images=3, grid=(8, 8)):
    rng = torch.Generator().manual_seed(2)
    return (
        torch.randn(images, 4, *grid, generator=rng),
        torch.tensor([5, 300, 999][:images]),
        torch.randn(images, 6, CONTEXT, generator=rng),
        [torch.randn(images, side * side, CHANNELS, generator=rng) for side in SIDES],
        torch.tensor([1, 0, 1][:images]),
    )


@pytest.mark.parametrize("grid", [(8, 8), (4, 12), (6, 10), (5, 7)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_fresh_one_changes_no_bit(kind, grid, layers):
    unet = unet_of(kind, layers)
    sample, step, context, maps, mask = inputs(grid=grid)
    want = unet(sample, step, context).sample
    net = beside(unet, grid)
    assert torch.equal(net(unet, sample, step, context, maps, mask), want)
    assert torch.equal(net(unet, sample, step, context, None, None), want)


def test_only_images_with_one_before_them_read_it():
    unet = unet_of()
    net = beside(unet, is_open=True)
    sample, step, context, maps, mask = inputs()
    before = net(unet, sample, step, context, maps, mask)
    after = net(unet, sample, step, context, [level + 1.0 for level in maps], mask)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, False]


def test_no_maps_are_maps_that_nobody_sees():
    unet = unet_of()
    net = beside(unet, is_open=True)
    sample, step, context, maps, mask = inputs()
    want = net(unet, sample, step, context, maps, torch.zeros_like(mask))
    torch.testing.assert_close(net(unet, sample, step, context, None, None), want)
    assert not torch.allclose(want, unet(sample, step, context).sample, atol=1e-3)  # the output's bias is left


def test_a_mask_is_not_needed_where_all_have_one():
    unet = unet_of()
    net = beside(unet, is_open=True)
    sample, step, context, maps, mask = inputs()
    found = net(unet, sample, step, context, maps, None)
    assert torch.equal(found, net(unet, sample, step, context, maps, torch.ones_like(mask)))


def test_an_image_does_not_depend_on_the_others():
    unet = unet_of()
    net = beside(unet, is_open=True)
    sample, step, context, maps, mask = inputs()
    whole = net(unet, sample, step, context, maps, mask)
    for i in range(3):
        at = slice(i, i + 1)
        one = net(unet, sample[at], step[at], context[at], [level[at] for level in maps], mask[at])
        torch.testing.assert_close(one, whole[at], atol=1e-5, rtol=1e-5)


def gradients(net, unet, maps):
    for module in (net, unet):
        module.zero_grad()
    for level in maps or []:
        level.grad = None
    sample, step, context, _, mask = inputs()
    net(unet, sample, step, context, maps, mask).pow(2).sum().backward()
    parameters = [*net.parameters(), *unet.parameters(), *(maps or [])]
    assert all(parameter.grad is not None for parameter in parameters)
    return [parameter.grad.clone() for parameter in parameters]


@pytest.mark.parametrize("has_maps", [True, False])
def test_every_weight_gets_a_gradient_also_recomputed(has_maps):
    unet = unet_of()
    net = beside(unet, is_open=True).train()
    unet.train()
    maps = [level.requires_grad_() for level in inputs()[3]] if has_maps else None
    want = gradients(net, unet, maps)
    unet.enable_gradient_checkpointing()
    net.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(gradients(net, unet, maps), want, strict=True))


def test_offsets_are_cells_of_the_unets_grid():
    """With maps as they are an offset of 1 is one cell; sides declared half as large make it half a cell."""
    unet = unet_of()
    cells = {}
    for offset_sides in (None, (2, 1)):
        spec = SPEC.model_copy(update={"offset_sides": offset_sides})
        net = UNetSynchroniser(spec, unet.config, CHANNELS, SIDES, (4, 8))
        attention = net.down[0].attention
        locations = [
            attention._locations(torch.zeros(1, 32, 16), torch.ones(1, 1, 1, dtype=int), net.sides, centre)
            for centre in (net.down[0].centre_T2, torch.zeros(32, 2))
        ]
        offsets = attention.sampling_offsets.bias.view(4, 3, 2)
        moved = locations[1][0, 0, :, 0, 0] / offsets * torch.tensor([8.0, 4.0])
        cells[offset_sides] = moved
        torch.testing.assert_close(
            locations[0][0, :, 0, 0, 0, 0] - locations[1][0, :, 0, 0, 0, 0], net.down[0].centre_T2
        )
    torch.testing.assert_close(cells[None], torch.ones(4, 3, 2))
    torch.testing.assert_close(cells[(2, 1)], torch.full((4, 3, 2), 0.5))


def test_what_it_does_not_offer_is_refused():
    with pytest.raises(ValueError, match="sets class_embed_type"):
        beside(unet_of(class_embed_type="identity"))
    with pytest.raises(ValueError, match="sets center_input_sample"):
        beside(unet_of(center_input_sample=True))
    spec = SPEC.model_copy(update={"offset_sides": (4,)})
    with pytest.raises(ValueError, match="offset_sides has 1 sides, the image's pyramid 2 maps"):
        UNetSynchroniser(spec, unet_of().config, CHANNELS, SIDES, (8, 8))
