"""Figures 5 and 6 of the paper and offset lengths for one image: pictures, and all their numbers.

Returned points are [x, y] and boxes [x0, y0, x1, y1] in pixels of the original image, the usual
order for images; inside this package they are (y, x).
"""

import math
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances

from .draw import Unit, draw_parts, draw_sampling_points, units_on
from .draw_maps import draw_maps
from .record import Inspection
from .sampling import conv_sampling_points, offset_lengths, part_boxes


@dataclass(frozen=True)
class FigureOptions:
    """Options of the figures.

    points: (x, y) in image pixels. Default: the background and the smallest and largest object
        found, or for segmentation a point in each of the three largest classes.
    num_layers: number of the last deformable convolutions to follow.
    boxes: (x0, y0, x1, y1, class), with the name or index of a class. Default: the `num_boxes` best
        detections.
    score_thresh: lowest score of detections.
    """

    points: list | None = None
    num_layers: int = 3
    boxes: list | None = None
    num_boxes: int = 3
    score_thresh: float = 0.5

    def __post_init__(self):
        if self.num_layers < 1 or self.num_boxes < 1:
            raise ValueError(
                f"{self.num_layers} layers and {self.num_boxes} boxes were requested; expected 1 "
                "or more of each"
            )


def figures(image, inspection: Inspection, class_names, options: FigureOptions = FigureOptions()):
    """Yield (kind, Figure, numbers) for the layers the network has.

    The kinds are "sampling_points" (figure 5), "offset_lengths" and "parts" (figure 6).

    Args:
        image: RGB, (H, W, 3) uint8.
        class_names: name of each class index.

    Raises:
        ValueError: the network has no deformable layers, or a point or box is invalid.
    """
    convs, pools = inspection.record.convs, inspection.record.pools
    if not (convs or pools):
        raise ValueError(
            "this network has no deformable layers on maps of the image: it has no offsets to show"
        )
    found = found_above(inspection, options.score_thresh)
    rois = found[: options.num_boxes]
    if options.boxes:
        if not pools:
            raise ValueError("boxes were given, but this network has no deformable RoI pooling")
        rois = given_boxes(options.boxes, inspection.image_size, class_names)
    if convs:
        if options.points:
            units = chosen_units(options.points, inspection.image_size)
        elif inspection.labels is not None:
            units = units_of_labels(inspection.labels, class_names)
        else:
            order = found.pred_boxes.area().argsort().tolist()
            ends = found[[*order[:1], *order[1:][-1:]]]
            units = units_on(ends, inspection.image_size, class_names)
        if units:
            figure = draw_sampling_points(image, inspection, units, options.num_layers)
            yield (
                "sampling_points",
                figure,
                sampling_coordinates(inspection, units, options.num_layers),
            )
        maps = offset_lengths(inspection)
        figure = draw_maps(image, maps, "mean offset length in image pixels")
        yield "offset_lengths", figure, length_numbers(maps)
    if pools and len(rois):
        figure = draw_parts(image, inspection, rois, class_names)
        yield "parts", figure, part_coordinates(inspection, rois, class_names)


def chosen_units(points, image_size) -> list[Unit]:
    """Units at given points.

    Args:
        points: (x, y) in image pixels.
        image_size: (height, width).

    Raises:
        ValueError: a point outside the image.
    """
    height, width = image_size
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"point {x:g} {y:g} (x y) lies outside the image of {width} x {height} pixels"
            )
    return [Unit(f"({x:g}, {y:g})", torch.tensor([y, x])) for x, y in points]


def units_of_labels(labels, names, num_units=3):
    """Units on the most frequent classes of labels (height, width).

    Each unit is at the pixel of its class nearest to the centroid of the class.
    """
    classes, counts = labels.unique(return_counts=True)
    units = []
    for index in classes[counts.argsort(descending=True)][:num_units].tolist():
        pixels = (labels == index).nonzero()
        nearest = (pixels - pixels.float().mean(dim=0)).norm(dim=1).argmin()
        units.append(Unit(names[index], pixels[nearest] + 0.5))
    return units


def found_above(inspection: Inspection, score_thresh: float) -> Instances:
    """Detections with at least this score, best first; empty for models without detections."""
    found = inspection.instances
    if found is None:
        found = Instances(inspection.image_size)
        found.pred_boxes, found.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
        found.pred_classes = torch.zeros(0, dtype=torch.int64)
    found = found[found.scores >= score_thresh]
    return found[found.scores.argsort(descending=True)]


def given_boxes(boxes, image_size, class_names) -> Instances:
    """Make RoIs from the boxes that a user gives.

    Args:
        boxes: (x0, y0, x1, y1, class), numbers in image pixels and a name or index of a class.

    Raises:
        ValueError: a box is invalid or lies outside the image, or a class is unknown.
    """
    height, width = image_size
    coordinates, classes = [], []
    for *box, name in boxes:
        try:
            x0, y0, x1, y1 = (float(v) for v in box)
        except ValueError:
            x0 = y0 = x1 = y1 = math.nan
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise ValueError(f"box {' '.join(map(str, box))}: expected X0 Y0 X1 Y1")
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"box {x0:g} {y0:g} {x1:g} {y1:g} has no area; expected X0 Y0 X1 Y1")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise ValueError(
                f"box {x0:g} {y0:g} {x1:g} {y1:g} lies outside the image of {width} x {height} "
                "pixels"
            )
        index = class_names.index(name) if name in class_names else _as_index(name)
        if not 0 <= index < len(class_names):
            raise ValueError(f"{name!r} is not a class; there are {', '.join(class_names)}")
        coordinates.append((x0, y0, x1, y1))
        classes.append(index)
    rois = Instances(image_size)
    rois.pred_boxes = Boxes(torch.tensor(coordinates).reshape(-1, 4))
    rois.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return rois


def _as_index(name):
    return int(name) if name.isdecimal() else -1


def sampling_coordinates(inspection: Inspection, units, num_layers: int) -> dict:
    """Coordinates of figure 5.

    Points are listed by offset group; the tap of the topmost layer is the slowest index. A point
    that is not "inside" samples nothing: it, or a point on the way to it, is outside its map.
    """
    layers = inspection.record.stack(num_layers)
    return {
        "layers": [conv.name for conv in layers],
        "groups": layers[-1].offset.shape[0],
        "units": [
            {
                "title": unit.title,
                "asked": unit.point.flip(0).tolist(),
                "fixed": _points(conv_sampling_points(inspection, unit.point, num_layers, False)),
                "learned": _points(conv_sampling_points(inspection, unit.point, num_layers)),
            }
            for unit in units
        ],
    }


def _points(seen) -> dict:
    return {
        "unit": seen.unit.flip(0).tolist(),
        "points": _rounded(seen.points.flip(-1).flatten(0, 1)),
        "inside": seen.inside.flatten().tolist(),
    }


def length_numbers(maps) -> dict:
    """Offset lengths by layer, rows of cells from the top; null beyond the image.

    Args:
        maps: see `offset_lengths`.
    """
    return {
        name: {
            "cell": list(reversed(cell)),
            "mean": values.nanmean().item(),
            "lengths": [
                [None if math.isnan(length) else length for length in row]
                for row in _rounded(values)
            ],
        }
        for name, (values, cell) in maps.items()
    }


def part_coordinates(inspection: Inspection, rois: Instances, class_names) -> list[dict]:
    """Coordinates of figure 6: the k * k parts of each RoI by rows, not clipped to the image."""
    boxes, classes = rois.pred_boxes.tensor, rois.pred_classes
    fixed = part_boxes(inspection, boxes, classes, deformed=False)
    learned = part_boxes(inspection, boxes, classes)
    return [
        {
            "box": _rounded(box),
            "class": class_names[index],
            "fixed": _rounded(of_fixed),
            "learned": _rounded(of_learned),
        }
        for box, index, of_fixed, of_learned in zip(boxes, classes.tolist(), fixed, learned)
    ]


def _rounded(tensor):
    """Round to a thousandth of a pixel, which keeps the file readable."""
    return (tensor.double() * 1000).round().div(1000).tolist()
