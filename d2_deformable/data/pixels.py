"""Pixels of image files of any common kind, with 8 bits."""

from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, ImageOps

WITHOUT_RANGE = {"I": "32-bit integer", "F": "floating-point"}


def read_image(file, channels: str = "RGB") -> np.ndarray:
    """Read an image, upright as its EXIF orientation says.

    Grey of 16 bits is scaled by 1/257, from 0..65535 to 0..255. Transparency is dropped. Palettes,
    CMYK and 1-bit images are converted to RGB as Pillow does. Of an animation, the first frame is
    read.

    Args:
        file: a path, or a binary file.
        channels: "RGB", "BGR", or another format of `detectron2.data.detection_utils.read_image`.

    Returns:
        uint8 (H, W, 3), or float for "YUV-BT.601".

    Raises:
        OSError: the file is missing or damaged, is no image, or has pixels without a defined range
            (32-bit integers, floating point).
    """
    is_path = isinstance(file, (str, Path))
    if is_path and not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such image")
    try:
        with Image.open(file) as opened:
            if opened.mode in WITHOUT_RANGE:
                raise ValueError(
                    f"its {WITHOUT_RANGE[opened.mode]} pixels have no defined range; convert it to "
                    "8 or 16 bits"
                )
            if opened.mode.startswith("I;16"):
                opened = _to_8_bits(opened)
            return np.ascontiguousarray(
                convert_PIL_to_numpy(ImageOps.exif_transpose(opened), channels)
            )
    except Exception as error:  # Pillow raises many types, most without the path
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image, or of an unknown format"
        name = f"{file}: " if is_path else ""
        raise OSError(f"{name}this image cannot be read: {reason}") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    scaled = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    scaled.info["exif"] = image.getexif().tobytes()
    return scaled
