"""Statistics of loaded data sets: objects by class, and box sizes against the anchors."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import BoxMode

from ..modeling.meta_arch.predicates import is_detector

# Edges of the histogram of box sizes: square root of the area, in pixels.
SIZE_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, np.inf)


class Objects(NamedTuple):
    """The M objects of N images, without crowds.

    Args:
        boxes: (M, 4) float, (x0, y0, x1, y1) in pixels.
        classes: (M,) int, class indices.
        images: (M,) int, indices of their images.
        image_sizes: (N, 2) float, (width, height) in pixels.
    """

    boxes: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    image_sizes: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """(M,) square root of each box's area."""
        return np.sqrt(
            (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])
        )


class Anchors(NamedTuple):
    """Anchors of a region proposal network.

    Args:
        cells: one (A, 4) array for each feature map, (x0, y0, x1, y1) in pixels around 0.
        strides: pixels between neighbouring anchors of each feature map.
        offset: position of the first anchor, as a fraction of the stride.
        threshold: lowest IoU at which an anchor trains as a positive example.
    """

    cells: list[np.ndarray]
    strides: list[int]
    offset: float
    threshold: float


def collect_objects(dicts: list[dict]) -> Objects:
    """Collect the objects of a data set in Detectron2's standard format, in image pixels."""
    rows = [
        (*BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"], i)
        for i, record in enumerate(dicts)
        for a in record.get("annotations", ())
        if not a.get("iscrowd")
    ]
    table = np.array(rows, dtype=float).reshape(-1, 6)
    sizes = [(record["width"], record["height"]) for record in dicts]
    return Objects(
        table[:, :4],
        table[:, 4].astype(int),
        table[:, 5].astype(int),
        np.array(sizes, dtype=float).reshape(-1, 2),
    )


def resize_objects(objects: Objects, short: int, longest: int) -> Objects:
    """Resize boxes and images as the network's input is, see INPUT.MIN_SIZE_TRAIN.

    Args:
        short: of the input's shorter side, in pixels.
        longest: limit of the longer side.
    """
    sizes = objects.image_sizes
    scale = np.minimum(short / sizes.min(1), longest / sizes.max(1))[:, None]
    boxes = objects.boxes * scale[objects.images]
    return objects._replace(boxes=boxes, image_sizes=sizes * scale)


def training_size(cfg) -> tuple[int, int]:
    """(shorter side, limit of the longer side) of the input in training: the median if several."""
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    return sizes[len(sizes) // 2], cfg.INPUT.MAX_SIZE_TRAIN


def read_anchors(cfg) -> Anchors | None:
    """Anchors of the network's RPN; None if it has none with upright boxes."""
    has_rpn = is_detector(cfg) or cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork"
    if not has_rpn or cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        return None
    with torch.device("meta"):
        features = build_backbone(cfg).output_shape()
    shapes = [features[name] for name in cfg.MODEL.RPN.IN_FEATURES]
    cells = [cell.numpy() for cell in build_anchor_generator(cfg, shapes).cell_anchors]
    if cells[0].shape[1] != 4:
        return None
    return Anchors(
        cells,
        [shape.stride for shape in shapes],
        cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        cfg.MODEL.RPN.IOU_THRESHOLDS[-1],
    )


def best_overlap(objects: Objects, anchors: Anchors) -> np.ndarray:
    """(M,) IoU of each box with the anchor that overlaps it most, at the anchors' real positions.

    Args:
        objects: in pixels of the network's input.
    """
    best = np.zeros(len(objects.boxes))
    low, high = objects.boxes[:, None, :2], objects.boxes[:, None, 2:]
    for cells, stride in zip(anchors.cells, anchors.strides, strict=True):
        # Of all anchors of one shape, the one that is nearest on both axes overlaps most.
        last = np.ceil(objects.image_sizes[objects.images] / stride)[:, None] - 1
        index = np.round((low + high) / 2 / stride - anchors.offset)
        center = (np.minimum(np.maximum(index, 0), last) + anchors.offset) * stride
        left, right = center + cells[:, :2], center + cells[:, 2:]  # (M, A, 2)
        both = (np.minimum(high, right) - np.maximum(low, left)).clip(min=0).prod(axis=2)
        areas = (high - low).prod(axis=2) + (right - left).prod(axis=2)
        best = np.maximum(best, (both / (areas - both)).max(axis=1, initial=0))
    return best
