import dataclasses

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2_deformable.analysis.record import ConvOffsets, Inspection, OffsetRecord, PartOffsets
from d2_deformable.analysis.visualize import FigureOptions, figures

CLASSES = ["cat", "7"]
IMAGE = torch.zeros(64, 96, 3, dtype=torch.uint8).numpy()


def inspection(convs=1, pools=1, boxes=(), scores=(), labels=None):
    """Cells of 8 x 8 pixels; taps move 1 cell to the right, parts of class 1 down by 0.1 RoIs."""
    conv = ConvOffsets(
        name="conv",
        offset=torch.tensor([0.0, 1.0])[:, None, None].expand(1, 9, 2, 8, 12),
        mask=None,
        input_size=(8, 12),
        kernel_size=(3, 3),
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
    )

    def predict(boxes):
        shifts = torch.zeros(len(boxes), 2, 2, 1, 1)
        shifts[:, 1, 0] = 1.0  # class 1 only
        return shifts, torch.full((len(boxes),), 1 / 8)

    pool = PartOffsets("pool", 2, predict, gamma=0.1, round_rois=False, min_size=0.1)
    found = Instances((64, 96))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    record = OffsetRecord([conv] * convs, [pool] * pools, (64, 96))
    return Inspection(record, found, (64, 96), (1.0, 1.0), labels)


def shown(inspection, **options):
    return {
        kind: numbers
        for kind, _, numbers in figures(IMAGE, inspection, CLASSES, FigureOptions(**options))
    }


BOXES = [[0, 0, 60, 60], [70, 40, 90, 60], [8, 8, 40, 40], [0, 0, 96, 64]]
SCORES = [0.9, 0.8, 0.7, 0.4]


def test_points_are_x_y_in_image_pixels():
    (unit,) = shown(inspection(), points=[(20.0, 42.0)])["sampling_points"]["units"]
    assert unit["asked"] == [20, 42]
    assert unit["fixed"]["unit"] == unit["learned"]["unit"] == [20, 44]  # the cell's centre
    assert unit["fixed"]["points"][0] == [12, 36] and unit["fixed"]["points"][8] == [28, 52]
    assert unit["learned"]["points"][0] == [20, 36]
    assert all(unit["learned"]["inside"])
    (unit,) = shown(inspection(), points=[(95.0, 0.0)])["sampling_points"]["units"]
    assert sum(unit["fixed"]["inside"]) == 4
    assert sum(unit["learned"]["inside"]) == 2


def test_units_are_background_smallest_and_largest():
    units = shown(inspection(boxes=BOXES, scores=SCORES))["sampling_points"]["units"]
    assert [unit["title"] for unit in units] == ["background", "cat", "cat"]
    assert [unit["asked"] for unit in units[1:]] == [[80, 50], [30, 30]]
    units = shown(inspection(boxes=BOXES[:1], scores=SCORES[:1]))["sampling_points"]["units"]
    assert [unit["title"] for unit in units] == ["background", "cat"]
    units = shown(inspection())["sampling_points"]["units"]
    assert [unit["title"] for unit in units] == ["background"]


def test_units_of_a_segmentation_are_on_its_classes():
    labels = torch.ones(64, 96, dtype=torch.int64)
    labels[20:31, 50:61] = 0
    units = shown(inspection(pools=0, labels=labels))["sampling_points"]["units"]
    assert [unit["title"] for unit in units] == ["7", "cat"]
    assert units[1]["asked"] == [55.5, 25.5]
    x, y = units[0]["asked"]
    assert labels[int(y), int(x)] == 1


def test_parts_of_the_best_boxes():
    parts = shown(inspection(boxes=BOXES, scores=SCORES), num_boxes=2)["parts"]
    assert [part["box"] for part in parts] == BOXES[:2]
    assert [part["learned"] for part in parts] == [part["fixed"] for part in parts]
    assert len(shown(inspection(boxes=BOXES, scores=SCORES), num_boxes=9)["parts"]) == 3
    assert "parts" not in shown(inspection())


@pytest.mark.parametrize("name", ["7", "1"])  # the name of class 1, and its index
def test_parts_of_given_boxes_take_the_offsets_of_their_class(name):
    box = ["8", "8", "48", "28"]
    moved, unmoved = shown(inspection(), boxes=[[*box, name], [*box, "cat"]])["parts"]
    assert moved["class"] == "7" and unmoved["class"] == "cat"
    assert moved["fixed"] == unmoved["learned"] == [[8, 8, 48, 28]]
    assert moved["learned"] == [[8, 10, 48, 30]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": [(96, 3)]}, "point 96 3 .* outside the image of 96 x 64"),
        ({"boxes": [["1", "2", "x", "4", "cat"]]}, "box 1 2 x 4: expected X0 Y0 X1 Y1"),
        ({"boxes": [["5", "2", "3", "4", "cat"]]}, "box 5 2 3 4 has no area"),
        ({"boxes": [["1", "2", "3", "4", "dog"]]}, "'dog' is not a class; there are cat, 7"),
        ({"boxes": [["1", "2", "3", "4", "2"]]}, "'2' is not a class"),
        ({"boxes": [["nan", "2", "3", "4", "cat"]]}, "box nan 2 3 4: expected X0 Y0 X1 Y1"),
        ({"boxes": [["96", "2", "99", "4", "cat"]]}, "box 96 2 99 4 lies outside .* of 96 x 64"),
        ({"boxes": [["-9", "2", "0", "4", "cat"]]}, "box -9 2 0 4 lies outside"),
        ({"points": [(float("nan"), 3)]}, "point nan 3"),
        ({"num_layers": 0}, "0 layers"),
    ],
)
def test_wrong_options_are_reported(options, message):
    with pytest.raises(ValueError, match=message):
        shown(inspection(), **options)


def test_boxes_need_deformable_roi_pooling():
    with pytest.raises(ValueError, match="boxes were given, but .* no deformable RoI"):
        shown(inspection(pools=0), boxes=[[0, 0, 10, 10, "cat"]])


def test_a_plain_network_has_nothing_to_show():
    with pytest.raises(ValueError, match="no deformable layers"):
        shown(inspection(convs=0, pools=0))
    assert set(shown(inspection(convs=0, boxes=BOXES, scores=SCORES))) == {"parts"}
    kinds = {"sampling_points", "offset_lengths"}
    assert set(shown(inspection(pools=0, boxes=BOXES, scores=SCORES))) == kinds


def test_lengths_of_offsets_are_in_image_pixels():
    seen = inspection()
    half = Inspection(seen.record, seen.instances, (32, 90), (0.5, 1.0))
    (layer,) = shown(half)["offset_lengths"].values()
    assert layer["cell"] == [8, 4] and layer["mean"] == 8  # one cell to the right
    # The image ends before the last column's centre.
    assert layer["lengths"] == [[8.0] * 11 + [None]] * 8
    down = dataclasses.replace(seen.record.convs[0], offset=torch.ones(1, 9, 2, 8, 12))
    record = OffsetRecord([down], [], (64, 96))
    (layer,) = shown(dataclasses.replace(seen, record=record))["offset_lengths"].values()
    assert layer["mean"] == pytest.approx(8 * 2**0.5)
