import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from d2_deformable.analysis.contact_sheet import (
    TILE,
    choose_columns,
    choose_records,
    draw_contact_sheet,
)
from d2_deformable.analysis.draw import class_color
from d2_deformable.data.custom import parse
from d2_deformable.data.discover import discover
from drawn import write_drawn


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def near(image, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(image.astype(int) - rgb).max(axis=-1) < 6).sum()


@pytest.mark.parametrize("kind", ["csv", "mask"])
def test_annotations_are_drawn(kind, tmp_path):
    root = write_drawn(tmp_path / "parts", kind, {"train": 5, "val": 1})
    custom = discover(root, kind)
    samples = {name: parse(name, fields).load(name) for name, fields in custom.items()}
    classes = custom["train"]["CLASSES"]
    figure = draw_contact_sheet(samples, classes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(classes)
    image = pixels(figure)
    height = 3 * TILE * 64 / 96  # three rows of three, in the shape of the images
    assert image.shape[1] == pytest.approx(3 * TILE, abs=4)
    assert height < image.shape[0] < height + 80
    for record in [r for records in samples.values() for r in records]:
        record.pop("sem_seg_file_name", None)
        record["annotations"] = []
    plain = pixels(draw_contact_sheet(samples, classes))
    image = image[: len(plain)]  # without the legend
    changed = (image != plain).any(axis=-1)
    if kind == "csv":
        assert all(near(image, class_color(k)) > 500 > near(plain, class_color(k)) for k in (0, 1))
        assert 0.01 < changed.mean() < 0.3
    else:
        assert changed.mean() > 0.3


def test_samples_are_spread_over_images_with_objects():
    dicts = [{"i": i, "annotations": [1] if i % 2 else []} for i in range(20)]
    assert [record["i"] for record in choose_records(dicts, 3)] == [3, 11, 17]
    assert choose_records(dicts[:1], 3) == dicts[:1]


@pytest.mark.parametrize(
    ("counts", "columns"),
    [([8], 4), ([6], 3), ([5], 5), ([7], 4), ([3], 3), ([1], 1), ([2, 1], 2), ([8, 8, 8], 4)],
)
def test_the_grid_leaves_few_tiles_blank(counts, columns):
    assert choose_columns(counts) == columns


def test_names_do_not_cover_each_other(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (200, 200)).save(file)
    boxes = [[20, 80, 60, 120], [26, 82, 66, 122], [150, 150, 180, 180]]
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in boxes]
    record = {"file_name": str(file), "width": 200, "height": 200, "annotations": annotations}
    figure = draw_contact_sheet({"set": [record]}, ["puffin"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["puffin"] * 2
    record["annotations"] = annotations * 5
    crowded = draw_contact_sheet({"set": [record]}, ["puffin"])
    assert not crowded.axes[0].texts and len(crowded.legends[0].get_texts()) == 1
