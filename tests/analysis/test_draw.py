import io

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.colors import to_rgb
from PIL import Image

from d2_deformable.analysis import draw
from d2_deformable.analysis.draw_maps import draw_maps
from d2_deformable.analysis.layer_map import LayerMap
from d2_deformable.analysis.segmentation import draw_segmentation


def pixels(figure):
    """The rendered figure, (H, W, 3) uint8."""
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def detections(size, boxes, scores):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.arange(len(scores))
    return found


def is_color(pixel, color):
    return abs(pixel - 255 * np.array(to_rgb(color))).max() < 30


@pytest.mark.parametrize("size", [(60, 80), (600, 800), (1200, 1600)])
def test_boxes_are_drawn_in_place_at_every_image_size(size):
    height, width = size
    found = detections(size, [[0.25 * width, 0.5 * height, 0.75 * width, height]], [0.9])
    shown = pixels(draw.draw_detections(np.full((*size, 3), 255, np.uint8), found, ["cat"]))
    assert shown.shape == (900, 1200, 3)
    for y, x in ((450, 600), (700, 300), (700, 899)):
        assert is_color(shown[y, x], draw.class_color(0)), (y, x)
    assert (shown[700, 600] == 255).all()
    # The label is on top of the box, at its left edge.
    assert is_color(shown[440, 302], draw.class_color(0))


def test_a_tall_image_makes_no_tall_picture():
    found = detections((900, 90), [[0, 0, 90, 900]], [0.5])
    shown = pixels(draw.draw_detections(np.zeros((900, 90, 3), np.uint8), found, ["cat"]))
    assert shown.shape == (900, 90, 3)


def test_background_point_is_far_from_boxes_and_border():
    y, x = draw.background_point((100, 200), torch.zeros(0, 4)).tolist()
    assert abs(y - 50) < 4 and 45 < x < 155
    boxes = torch.tensor([[0.0, 0.0, 140.0, 100.0]])
    y, x = draw.background_point((100, 200), boxes).tolist()
    assert abs(y - 50) < 25 and abs(x - 170) < 8
    assert draw.background_point((100, 200), torch.tensor([[0.0, 0.0, 200.0, 100.0]])) is None


def test_crops_stay_in_the_image_where_they_can():
    box = torch.tensor([0.0, 40.0, 20.0, 60.0])
    assert draw.square_around(box, (100, 200)).tolist() == [0, 33, 34, 67]
    image = np.full((20, 60, 3), 7, np.uint8)
    view = draw.square_around(torch.tensor([20.0, 0.0, 40.0, 20.0]), image.shape[:2])
    assert view.tolist() == [13, -7, 47, 27]
    crop = draw.crop(image, view)
    assert crop.shape == (34, 34, 3)
    assert (crop[7:27] == 7).all() and (crop[:7] == 235).all() and (crop[27:] == 235).all()


def test_curves_of_losses_that_come_and_go():
    history = [
        {"iteration": 19, "total_loss": 3.0, "loss_cls": 2.0, "lr": 0.1},
        {"iteration": 20, "bbox/AP": 1.0},
        {"iteration": 39, "total_loss": 2.0, "loss_cls": 1.0, "loss_mask": 1.0, "lr": 0.1},
    ]
    losses, rate = draw.draw_curves(history).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert drawn == {
        "total_loss": [[19, 3], [39, 2]],
        "loss_cls": [[19, 2], [39, 1]],
        "loss_mask": [[39, 1]],
    }
    assert rate.lines[0].get_xydata().tolist() == [[19, 0.1], [39, 0.1]]


@pytest.mark.parametrize("name", ["$x^2$", r"$\unknown$", "_hidden", "<b>"])
def test_names_of_classes_are_no_formulas(name):
    found = detections((60, 80), [[10, 10, 70, 50]], [0.9])
    figure = draw.draw_detections(np.full((60, 80, 3), 255, np.uint8), found, [name])
    shown = pixels(figure)
    (text,) = figure.axes[0].texts
    assert text.get_text() == f"{name} 90%"
    width = text.get_window_extent().width
    text.set_text(f"{name.replace('$', 'S')} 90%")  # as wide as the dollar in this font
    assert abs(width - text.get_window_extent().width) < 3
    assert is_color(shown[450, 150], draw.class_color(0))


def test_maps_of_layers_share_a_scale():
    image = np.full((30, 40, 3), 90, np.uint8)
    maps = {
        f"backbone.res5.{i}": LayerMap(torch.full((3, 4), float(i)), (10.0, 10.0)) for i in range(6)
    }
    maps["backbone.res5.0"].values[0] = torch.nan
    figure = draw_maps(image, maps, "length in image pixels")
    assert pixels(figure).shape[1] == 1200
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels[:6]] == [f"res5.{i}" for i in range(6)]
    assert not any(axes.axison for axes in panels) and not panels[7].images
    assert bar.get_ylabel() == "length in image pixels" and bar.get_ylim() == (0, 5)
    assert {axes.images[1].get_clim() for axes in panels[:6]} == {(0, 5)}
    assert panels[0].images[1].get_array().mask[0].all()


def test_a_map_of_zeros_has_a_scale():
    image = np.zeros((30, 40, 3), np.uint8)
    maps = {"conv": LayerMap(torch.zeros(3, 4), (10.0, 10.0))}
    assert draw_maps(image, maps, "cells").axes[-1].get_ylim() == (0, 1)


@pytest.mark.parametrize("size", [(4, 3000), (3000, 4), (1, 700)])
def test_thin_images(size):
    """A side of a picture is neither 0 pixels nor a million."""
    image = np.zeros((*size, 3), np.uint8)
    found = detections(size, [[0, 0, size[1], size[0]]], [0.9])
    values = torch.rand(max(1, size[0] // 16), max(1, size[1] // 16))
    maps = {"res5": LayerMap(values, torch.tensor([16.0, 16.0]))}
    labels = np.zeros(size, int)
    for figure in (
        draw.draw_detections(image, found, ["cat"]),
        draw_maps(image, maps, "cells"),
        draw_segmentation(image, labels, labels, ["background"]),
    ):
        height, width, _ = pixels(figure).shape
        assert 20 < width < 3000 and 20 < height < 30000
