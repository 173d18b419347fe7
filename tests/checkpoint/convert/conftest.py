import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image(tmp_path):
    """An image file of noise, 64 x 96."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"
