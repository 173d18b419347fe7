import numpy as np
import pytest

from d2_deformable.analysis.contact_sheet import TILE, choose_records, draw_contact_sheet
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
    image = pixels(draw_contact_sheet(samples, classes))
    assert image.shape[0] > 2.9 * TILE and image.shape[1] == pytest.approx(1200, abs=2), "3 rows"
    for record in [r for records in samples.values() for r in records]:
        record.pop("sem_seg_file_name", None)
        record["annotations"] = []
    plain = pixels(draw_contact_sheet(samples, classes))
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
