"""Drawn pictures that no network was trained on, and the packaged network."""

import pytest
from PIL import Image

from d2_deformable.data.warped_shapes import WarpedShapesFormat
from d2_deformable.inference import Predictor


@pytest.fixture(scope="session")
def pictures():
    """Two pictures, RGB (160, 160, 3) uint8."""
    shapes = WarpedShapesFormat(image_size=160)
    return [shapes.draw(5000)[0], shapes.draw(5001)[0]]


@pytest.fixture(scope="session")
def predictor():
    return Predictor(device="cpu")


@pytest.fixture
def photos(tmp_path, pictures):
    """A folder with one picture at its top, one in a subfolder, and a broken file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(pictures[0]).save(folder / "a.png")
    Image.fromarray(pictures[1]).save(folder / "sub/b.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder
