"""Image files: pixels of the size that the header says, or one sentence, in bounded memory."""

import io

import numpy as np
from PIL import Image

from d2_deformable.data.masks import read_mask
from d2_deformable.utils.pixels import image_size, read_image

from ._files import FOLDER, refused_in_a_sentence

FILE = FOLDER / "image"


def one_input(data: bytes) -> None:
    FILE.write_bytes(data)
    size = None
    with refused_in_a_sentence(FILE):
        size = image_size(FILE)
    with refused_in_a_sentence(FILE):
        pixels = read_image(FILE, "BGR")
        assert pixels.dtype == np.uint8 and pixels.shape == (size[1], size[0], 3)
    with refused_in_a_sentence(FILE):
        assert read_mask(FILE).ndim == 2


def _encode(mode: str, kind: str, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).convert(mode).save(
        content, kind, **options
    )
    return content.getvalue()


_TURNED = Image.Exif()
_TURNED[0x0112] = 6

SEEDS = [
    *(_encode(mode, "PNG") for mode in ("L", "P", "1", "RGBA", "I;16")),
    _encode("RGB", "JPEG", exif=_TURNED),
    *(_encode("RGB", kind) for kind in ("BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX")),
    _encode("L", "TIFF", compression="tiff_lzw"),
    _encode("RGB", "EPS"),
]
