"""Image files of every common kind, read as 8-bit pixels."""

import numpy as np
import pytest
from PIL import Image

from d2_deformable.data.pixels import read_image

GREY = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (8, 1))  # (8, 25), dark to bright
COLORS = np.stack([GREY, GREY[::-1, ::-1], 255 - GREY], axis=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L", "LA", "1"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_every_mode(tmp_path, mode, suffix):
    if (mode, suffix) == ("CMYK", "png"):
        pytest.skip("PNG has no CMYK")
    image = Image.fromarray(COLORS).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), expected)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}", "BGR"), expected[:, :, ::-1])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled(tmp_path, suffix):
    Image.fromarray(GREY.astype(np.uint16) * 257 + 100).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.dstack([GREY] * 3))


@pytest.mark.parametrize("depth", [8, 16])
def test_upright(tmp_path, depth):
    pixels = GREY if depth == 8 else GREY.astype(np.uint16) * 257
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", "L")[..., 0], np.rot90(GREY, -1))


@pytest.mark.parametrize("pixels", [GREY.astype(np.float32), GREY.astype(np.int32)])
def test_pixels_without_a_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(OSError, match=r"a.tiff: .* no defined range; convert it to 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_files_that_are_no_image(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    for name, reason in (
        ("truncated.png", "cannot be read"),
        ("empty.jpg", "not an image"),
        ("missing.jpg", "no such image"),
    ):
        with pytest.raises(OSError, match=f"{name}: .*{reason}"):
            read_image(tmp_path / name)
