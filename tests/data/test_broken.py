import pytest

from d2_deformable.data import SkipBrokenImages
from d2_deformable.data.broken import MAX_IN_A_ROW
from d2_deformable.data.mapper import BrokenImageError


class Mapper:
    """Cannot read "b.jpg"."""

    def __call__(self, record):
        if record["file_name"] == "b.jpg":
            error = BrokenImageError("b.jpg: this image cannot be read")
            error.path = "b.jpg"
            raise error
        if record["file_name"] == "c.jpg":
            raise OSError("not about an image")
        return {**record, "mapped": True}


def test_a_broken_image_is_replaced_and_named():
    good, broken = {"file_name": "a.jpg"}, {"file_name": "b.jpg"}
    mapper = SkipBrokenImages(Mapper(), [good, broken])
    assert mapper(good) == {"file_name": "a.jpg", "mapped": True}
    mapped = mapper(broken)
    assert mapped["file_name"] == "a.jpg" and set(mapped["skipped_images"]) == {"b.jpg"}


def test_other_errors_and_a_data_set_of_broken_images_stop():
    with pytest.raises(OSError, match="not about an image"):
        SkipBrokenImages(Mapper(), [{}])({"file_name": "c.jpg"})
    calls = []

    class Counting(Mapper):
        def __call__(self, record):
            calls.append(record)
            return super().__call__(record)

    broken = {"file_name": "b.jpg"}
    with pytest.raises(BrokenImageError, match="b.jpg"):
        SkipBrokenImages(Counting(), [broken])(broken)
    assert len(calls) == MAX_IN_A_ROW
