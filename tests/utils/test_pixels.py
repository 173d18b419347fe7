"""Image files of every common kind, read as 8-bit pixels."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from d2_deformable.utils.pixels import image_size, read_image

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


def write_tiff(file, values: bytes, width: int, bits: int, sample_format: int = 1, black: int = 1):
    """Write an uncompressed grey TIFF of one row, of a depth that Pillow does not write."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, black), (273, None), (277, 1)]
    tags += [(278, 1), (279, len(values)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if v is None else v) for tag, v in tags]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    file.write_bytes(head + b"".join(entries) + bytes(4) + values)


def test_12_bits_are_scaled(tmp_path):
    write_tiff(tmp_path / "a.tiff", bytes([0xFF, 0xF8, 0x00]), 2, bits=12)  # 4095, 2048
    assert read_image(tmp_path / "a.tiff", "L")[..., 0].tolist() == [[255, 127]]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_white_is_zero(tmp_path, bits):
    """PhotometricInterpretation 0. Pillow inverts 8 bits, but not 16."""
    values = struct.pack("<2H" if bits == 16 else "2B", 0, 2**bits - 1)
    write_tiff(tmp_path / "a.tiff", values, 2, bits, black=0)
    assert read_image(tmp_path / "a.tiff", "L")[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("sample_format", "code", "name"), [(2, "<2h", "signed integer"), (3, "<2e", "")]
)
def test_other_16_bits_are_refused(tmp_path, sample_format, code, name):
    write_tiff(tmp_path / "a.tiff", struct.pack(code, -3, 4), 2, 16, sample_format)
    with pytest.raises(OSError, match=f"a.tiff: this image cannot be read: .*{name}"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("white", [1023, 65535])
def test_pgm_of_more_than_8_bits(tmp_path, white):
    (tmp_path / "a.pgm").write_bytes(b"P2\n2 1\n%d\n%d %d\n" % (white, white, white // 2))
    assert read_image(tmp_path / "a.pgm", "L")[..., 0].tolist() == [[255, 127]]


def test_16_bit_colours(tmp_path):
    """Pillow reads the upper 8 bits of each colour, 1/256 instead of 1/257."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLORS.astype(np.uint16) * 257)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", COLORS.shape[1], COLORS.shape[0], 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(png)
    assert np.array_equal(read_image(tmp_path / "a.png"), COLORS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_every_orientation(tmp_path, suffix, orientation):
    """Turned once, and `image_size` agrees. Pillow turns a TIFF by itself, others not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((16, 16), np.uint8))
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.T, 2),
        8: np.rot90,
    }[orientation]
    found = read_image(tmp_path / f"a.{suffix}", "L")[..., 0]
    assert np.abs(found.astype(int) - turn(pixels)).max() < 5
    assert image_size(tmp_path / f"a.{suffix}") == found.shape[::-1]


def test_sizes_of_files_that_are_no_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"text")
    with pytest.raises(ValueError, match="a.jpg: not a readable image"):
        image_size(tmp_path / "a.jpg")


def test_a_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    image.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() < 12


def test_16_bits_of_jpeg_2000(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.jp2", irreversible=False)
    assert np.array_equal(read_image(tmp_path / "a.jp2", "L")[..., 0], GREY)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp"])
def test_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read_image(tmp_path / f"a.{suffix}") == [255, 0, 0]).all()


def test_a_transparent_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.save(tmp_path / "a.png", transparency=b"\0\x80")
    assert read_image(tmp_path / "a.png").tolist() == [[[200, 10, 10], [10, 200, 10]]]


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pixels_can_be_changed_in_place(tmp_path, channels):
    """As augmentations may do."""
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    flags = read_image(tmp_path / "a.png", channels).flags
    assert flags.writeable and flags.c_contiguous
