"""Splicing: what goes where, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID, MEDIA_IDS
from mmmoe.models.splice import splice

I = IMAGE_ID  # noqa: E741


def text_of(ids):
    """Embeds id n as the vector [n, n]."""
    return ids.clamp(min=0).float()[..., None].expand(*ids.shape, 2).contiguous()


def numbers(spliced):
    return spliced.embeddings_BTD[..., 0].long().tolist()


IDS = torch.tensor([[1, I, 2, 0], [3, 4, 5, 6], [I, I, 7, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
IMAGES = torch.tensor([[101, 102], [201, 202], [301, 302]]).float()[..., None].expand(3, 2, 2)


def test_images_go_to_their_places_in_reading_order():
    labels = IDS.masked_fill(IDS == I, IGNORE_ID).masked_fill(~MASK, IGNORE_ID)
    spliced = splice(text_of(IDS), IDS, MASK, {"image": IMAGES}, labels)
    assert numbers(spliced) == [[1, 101, 102, 2, 0], [3, 4, 5, 6, 0], [201, 202, 301, 302, 7]]
    assert spliced.mask_BT.sum(1).tolist() == [4, 4, 5]
    assert spliced.position_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert spliced.labels_BT.tolist() == [[1, -100, -100, 2, -100], [3, 4, 5, 6, -100], [-100] * 4 + [7]]


def test_left_padding_for_generation():
    ids, mask = IDS.flip(1), MASK.flip(1)
    spliced = splice(text_of(ids), ids, mask, {"image": IMAGES}, left=True)
    assert numbers(spliced) == [[0, 2, 101, 102, 1], [0, 6, 5, 4, 3], [7, 201, 202, 301, 302]]
    assert spliced.position_BT.tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert spliced.labels_BT is None


def test_rows_are_cut_on_the_right_even_within_an_image():
    spliced = splice(text_of(IDS), IDS, MASK, {"image": IMAGES}, max_positions=3)
    assert numbers(spliced) == [[1, 101, 102], [3, 4, 5], [201, 202, 301]]
    assert bool(spliced.mask_BT.all())


def test_images_of_different_length():
    images = [IMAGES[0], IMAGES[1, :1], torch.cat([IMAGES[2], IMAGES[2]])]
    assert numbers(splice(text_of(IDS), IDS, MASK, {"image": images})) == [
        [1, 101, 102, 2, 0, 0], [3, 4, 5, 6, 0, 0], [201, 301, 302, 301, 302, 7]
    ]  # fmt: skip


def test_no_images_at_all():
    ids = torch.tensor([[1, 2], [3, 0]])
    spliced = splice(text_of(ids), ids, ids > 0, {"image": torch.zeros(0, 2, 2)})
    assert numbers(spliced) == [[1, 2], [3, 0]]


@pytest.mark.parametrize("kept", [2, 0])
def test_a_wrong_number_of_images_is_refused(kept):
    with pytest.raises(ValueError, match=rf"3 image placeholders and {kept} image items"):
        splice(text_of(IDS), IDS, MASK, {"image": IMAGES[:kept]})


def test_gradients_reach_text_and_images():
    text, images = text_of(IDS).requires_grad_(), IMAGES.clone().requires_grad_()
    splice(text, IDS, MASK, {"image": images}, max_positions=3).embeddings_BTD.sum().backward()
    assert images.grad[..., 0].tolist() == [[1, 1], [1, 1], [1, 0]]
    assert text.grad[..., 0].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_kinds_go_to_their_own_placeholders():
    a, v, s = MEDIA_IDS["audio"], MEDIA_IDS["video"], MEDIA_IDS["speech"]
    ids = torch.tensor([[1, s, s, v, 2], [a, I, 3, 0, 0], [4, I, a, 5, 0]])
    items = {
        "image": IMAGES[:2],
        "speech": [text_of(torch.tensor([501])), text_of(torch.tensor([511, 512, 513]))],
        "audio": IMAGES[2:].repeat(2, 1, 1) + torch.tensor([0.0, 100.0]).view(2, 1, 1),
        "video": text_of(torch.tensor([[401, 402]])),
    }
    spliced = splice(text_of(ids), ids, ids != 0, items)
    assert numbers(spliced) == [
        [1, 501, 511, 512, 513, 401, 402, 2], [301, 302, 101, 102, 3, 0, 0, 0], [4, 201, 202, 401, 402, 5, 0, 0]
    ]  # fmt: skip
    assert spliced.kind_BT.tolist() == [
        [0, 2, 2, 2, 2, 4, 4, 0], [3, 3, 1, 1, 0, 0, 0, 0], [0, 1, 1, 3, 3, 0, 0, 0]
    ]  # fmt: skip


def test_a_placeholder_of_a_kind_that_is_not_given_is_refused():
    ids = torch.tensor([[1, MEDIA_IDS["speech"], 2]])
    with pytest.raises(ValueError, match="1 speech placeholders, but the model takes no speech"):
        splice(text_of(ids), ids, ids != 0, {"image": IMAGES[:0]})
