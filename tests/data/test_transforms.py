import io

import pytest
import torch
from PIL import Image

from mmmoe.data import transforms
from mmmoe.data.transforms import ImageTransform, decode

HALF = (0.5, 0.5, 0.5)


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_even_colour_normalises_to_closed_form(kind):
    transform = ImageTransform(8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "stretch")
    pixels = transform(encoded(Image.new("RGB", (20, 10), (128, 128, 128)), kind))
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 8, 8)
    expected = (torch.full((3,), 128 / 255) - torch.tensor((0.4, 0.5, 0.6))) / torch.tensor((0.2, 0.25, 0.3))
    torch.testing.assert_close(pixels, expected.view(3, 1, 1).expand(3, 8, 8), atol=1e-6, rtol=0)


def halves():
    image = Image.new("RGB", (16, 8), "black")
    image.paste(Image.new("RGB", (8, 8), "white"), (8, 0))
    return image


def test_fits_place_the_picture():
    white, black = 1.0, -1.0
    padded = ImageTransform(16, HALF, HALF, "pad")(halves())
    # Rows 0-3 and 12-15 are background 127, the picture stands between.
    assert padded[0, 3, 0] == pytest.approx(127 / 127.5 - 1)
    assert (padded[0, 4, 0], padded[0, 11, 15]) == (black, white)
    assert padded[0, 12, 15] == pytest.approx(127 / 127.5 - 1)
    cropped = ImageTransform(8, HALF, HALF, "crop")(halves())
    assert (cropped[0, 0, 3], cropped[0, 7, 4]) == (black, white)
    stretched = ImageTransform(8, HALF, HALF, "stretch")(halves())
    assert (stretched[0, 0, 0], stretched[0, 0, 7]) == (black, white)


def test_transparency_lies_on_white():
    clear = ImageTransform(4, HALF, HALF)(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert torch.equal(clear, torch.ones(3, 4, 4))
    half = ImageTransform(4, (0, 0, 0), (1, 1, 1))(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    torch.testing.assert_close(half, torch.full((3, 4, 4), 127 / 255))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(encoded(Image.new("RGB", (3, 3)).convert(mode), kind)).mode == "RGB"


def test_grey_has_no_content():
    grey = ImageTransform(6, HALF, HALF).blank()
    torch.testing.assert_close(grey, torch.full((3, 6, 6), 128 / 127.5 - 1), atol=1e-6, rtol=0)


def test_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="10 x 10 pixels"):
        decode(encoded(Image.new("RGB", (10, 10))))


def test_a_line_is_not_padded_to_a_square_beyond_the_limit():
    line = Image.new("RGB", (1, 60_000))
    with pytest.raises(ValueError, match="1 x 60000 pixels needs a square of 60000 x 60000"):
        ImageTransform(4, HALF, HALF, "pad")(line)
    assert ImageTransform(4, HALF, HALF, "stretch")(line).shape == (3, 4, 4)


def test_every_cut_of_a_file_is_a_value_error():
    data = encoded(Image.effect_noise((32, 32), 50).convert("RGB"), "JPEG")
    for end in range(0, len(data) - 40, 40):
        with pytest.raises(ValueError, match="image cannot be decoded"):
            decode(data[:end])


def test_unknown_fit():
    with pytest.raises(ValueError, match="squash"):
        ImageTransform(8, HALF, HALF, "squash")
