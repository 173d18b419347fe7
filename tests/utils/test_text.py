import pytest

from d2_deformable.utils.text import count


@pytest.mark.parametrize(
    ("n", "things", "expected"),
    [
        (0, "image", "0 images"),
        (1, "box without area", "1 box without area"),
        (2, "box without area", "2 boxes without area"),
        (3, "class", "3 classes"),
        (5000, "image to train on", "5,000 images to train on"),
    ],
)
def test_count(n, things, expected):
    assert count(n, things) == expected
