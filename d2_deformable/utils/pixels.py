"""Pixels of image files of any common kind, with 8 bits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

# Pillow reads these by running other programs, such as Ghostscript, on the file.
RUN_PROGRAMS = ("EPS", "WMF")
WITHOUT_RANGE = {"I": "32-bit or signed integer", "F": "floating-point"}
UP_TO_16_BITS = ("PNG", "PPM")  # formats whose grey of 16 bits some Pillow versions open as "I"
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_image(file, channels: str = "RGB") -> np.ndarray:
    """Read an image, upright as its EXIF orientation says.

    Grey of 16 bits is scaled by 1/257, from 0..65535 to 0..255, and of 12 bits in the same way.
    Transparency is dropped. Palettes, CMYK and 1-bit images are converted to RGB as Pillow does. Of
    an animation, the first frame is read. Detectron2's `read_image` differs in that it clips 16
    bits and floating point to 255, and turns a TIFF twice.

    Args:
        file: a path, or a URL of Detectron2's PathManager, or a binary file.
        channels: "RGB", "BGR", or another format of `detectron2.data.detection_utils.read_image`.

    Returns:
        uint8 (H, W, 3), or float for "YUV-BT.601".

    Raises:
        OSError: the file is missing or damaged, is no image, has more pixels than `check_pixels`
            allows, or pixels without a defined range (32-bit or signed integers, floating point).
    """
    is_path = isinstance(file, (str, Path))
    try:
        if not is_path:
            return _decode(file, channels)
        # Pillow maps a path into memory, and then mixes up the sides of a TIFF that lies sideways.
        with PathManager.open(str(file), "rb") as opened:
            return _decode(opened, channels)
    except Exception as error:  # Pillow raises many types, most without the path
        kind, reason = OSError, str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            kind, reason = FileNotFoundError, "no such image"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image, or of an unknown format"
        name = f"{file}: " if is_path else ""
        raise kind(f"{name}this image cannot be read: {reason}") from error


def image_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) that `read_image` gives from the header of a file.

    Raises:
        ValueError: the file is not an image.
    """
    try:
        with open(path, "rb") as file, open_image(file) as image:
            if image.getexif().get(ExifTags.Base.Orientation) not in SIDEWAYS:
                return image.size
            if image.format == "TIFF":  # whose size Pillow has turned already, or turns later
                return ImageOps.exif_transpose(image).size
            return image.size[::-1]
    except Exception as error:  # Pillow's readers raise many types on broken files
        raise ValueError(f"{path}: not a readable image ({error})") from error


def check_pixels(pixels: int) -> None:
    """Check that an image has at most PIL.Image.MAX_IMAGE_PIXELS pixels, 89 million by default.

    Decoded, a file of some kilobytes can fill the memory. Pillow itself only warns, up to twice as
    many.

    Raises:
        ValueError: it has more.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise ValueError(
            f"it has {pixels:,} pixels; expected at most {limit:,}. Reduce it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


@contextmanager
def open_image(file) -> Iterator[Image.Image]:
    """Open an image with Pillow, whose header is read and checked by `check_pixels`.

    Raises:
        OSError, ValueError: it has too many pixels, or Pillow cannot read it; Pillow raises many
            types.
    """
    try:
        opened = Image.open(file, formats=readable_formats())
    except Image.DecompressionBombError as error:  # Pillow's own limit is twice ours
        for pixels in re.findall(r"\d+", str(error))[:1]:
            check_pixels(int(pixels))
        raise
    with opened as image:
        check_pixels(image.width * image.height)
        yield image


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow reads by itself, the most common first."""
    Image.preinit()
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in RUN_PROGRAMS)


def _decode(file, channels: str) -> np.ndarray:
    with open_image(file) as image:
        if highest := _highest_value(image):
            image = _to_8_bits(image, highest)
        elif image.mode in WITHOUT_RANGE:
            raise ValueError(
                f"its {WITHOUT_RANGE[image.mode]} pixels have no defined range; convert it to 8 or "
                "16 bits"
            )
        ImageOps.exif_transpose(image, in_place=True)
        if channels not in ("RGB", "BGR"):
            return np.ascontiguousarray(convert_PIL_to_numpy(image, channels))
        # Half the time of Detectron2's function, which copies an image that is RGB already, and
        # turns the channels round in another copy.
        image = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.frombuffer(bytearray(image.tobytes("raw", channels)), np.uint8)
        return pixels.reshape(image.height, image.width, 3)


def _highest_value(image: Image.Image) -> int | None:
    """The value of white in grey of more than 8 bits; None for other images."""
    if image.mode == "I;16" and isinstance(image, TiffImageFile):  # Pillow reads 12 bits into 16
        return 2 ** image.tag_v2[ExifTags.Base.BitsPerSample][0] - 1
    is_16_bits = image.mode == "I" and image.format in UP_TO_16_BITS
    return 2**16 - 1 if is_16_bits or image.mode.startswith("I;16") else None


def _is_white_zero(image: TiffImageFile) -> bool:
    return image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0


def _to_8_bits(image: Image.Image, highest: int) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    if isinstance(image, TiffImageFile) and _is_white_zero(image):  # Pillow: of 8 bits only
        values = highest - values
    scaled = Image.fromarray((values * 255 // highest).astype(np.uint8))
    scaled.info["exif"] = image.getexif().tobytes()
    return scaled
