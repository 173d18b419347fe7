"""Effective dilation of 3x3 convolutions by the size of the object below them (paper table 2).

The effective dilation of a filter at a position is the mean distance over all adjacent pairs of its
sampling points, in cells of the layer's map (paper sec. 4.2). A 3x3 grid has 6 horizontal and 6
vertical pairs. Without offsets it is exactly the dilation.
"""

import math
from dataclasses import dataclass, field

import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from ..layers import kernel_convs
from ..ops.geometry import is_inside, kernel_taps, tap_grid
from .layer_map import LayerMap, filter_centers, layer_map
from .record import ConvOffsets, needs_proposals, record_offsets

SIZES = ("small", "medium", "large", "background")
COLUMNS = (*SIZES, "all")


@dataclass(frozen=True)
class Rules:
    """Choices that the paper leaves open for its table 2; the defaults are our reading.

    limits: sides of the squares whose areas separate small, medium and large; 96 and 224 in the
        paper.
    area: measure objects in "original" pixels of the image, or in "input" pixels of the network.
    overlap: where several boxes contain a filter's centre, the "smallest" or the "largest" counts.
    groups: with several offset groups, count "all" of them as filters, or only the "first", which
        is the only one that the released pictures show.
    border: "keep" filters with sampling points beyond their map, or "drop" them.
    """

    limits: tuple[float, float] = (96, 224)
    area: str = "original"
    overlap: str = "smallest"
    groups: str = "all"
    border: str = "keep"

    CHOICES = {
        "area": ("original", "input"),
        "overlap": ("smallest", "largest"),
        "groups": ("all", "first"),
        "border": ("keep", "drop"),
    }


@dataclass
class Moments:
    """Count, mean and standard deviation of all values added."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: torch.Tensor) -> None:
        values = values.double()
        self.count += values.numel()
        self.total += values.sum().item()
        self.squares += values.square().sum().item()

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))

    def as_dict(self) -> dict:
        if not self.count:
            return {"count": 0, "mean": None, "std": None}
        return {"count": self.count, "mean": self.mean, "std": self.std}


@dataclass
class LayerDilation:
    """A layer's row of the table: its fixed dilation (y, x), and `Moments` by column."""

    dilation: tuple[int, int]
    deformable: bool
    columns: dict[str, Moments] = field(
        default_factory=lambda: {column: Moments() for column in COLUMNS}
    )


def sampling_grid(conv: ConvOffsets) -> torch.Tensor:
    """Sampling points (G, k_h, k_w, 2, H_out, W_out) of (y, x), relative to the fixed grid's first
    tap, in cells of the layer's map."""
    taps = kernel_taps(conv.kernel_size, conv.dilation)
    grid = taps.view(*conv.kernel_size, 2, 1, 1)
    return grid + conv.offset.unflatten(1, conv.kernel_size)


def effective_dilation(conv: ConvOffsets) -> torch.Tensor:
    """Mean distance of adjacent sampling points, (G, H_out, W_out), in cells of the layer's map."""
    points = sampling_grid(conv)
    down = (points[:, 1:] - points[:, :-1]).norm(dim=3).flatten(1, 2)
    right = (points[:, :, 1:] - points[:, :, :-1]).norm(dim=3).flatten(1, 2)
    return torch.cat([down, right], dim=1).mean(dim=1)


def leaves_the_map(conv: ConvOffsets) -> torch.Tensor:
    """Whether any sampling point of a filter is beyond the input map, (G, H_out, W_out) bool."""
    grid = tap_grid(conv.output_size, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    points = torch.stack(torch.broadcast_tensors(*grid), dim=-1) + conv.offset.movedim(2, -1)
    return ~is_inside(points, conv.input_size).all(dim=1)


def object_sizes(centers, image_size, boxes, pixel=(1.0, 1.0), rules=Rules()) -> torch.Tensor:
    """Size of the object below each centre, as an index into `SIZES`; -1 beyond the image.

    Args:
        centers: y (H,) and x (W,), in original image pixels.
        image_size: (height, width).
        boxes: (R, 4), x0, y0, x1, y1 in original image pixels.

    Returns:
        (H, W)
    """
    y, x = centers
    sizes = torch.full((len(y), len(x)), SIZES.index("background"))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # Later boxes overwrite earlier ones.
    order = areas.argsort(descending=rules.overlap == "smallest")
    if rules.area == "input":
        areas = areas / (pixel[0] * pixel[1])
    small, large = rules.limits
    for (x0, y0, x1, y1), area in zip(boxes[order].tolist(), areas[order].tolist()):
        inside = ((y >= y0) & (y < y1))[:, None] & (x >= x0) & (x < x1)
        sizes[inside] = 0 if area < small**2 else 1 if area <= large**2 else 2
    sizes[y >= image_size[0]] = -1
    sizes[:, x >= image_size[1]] = -1
    return sizes


def annotated_boxes(record: dict) -> torch.Tensor | None:
    """Boxes (R, 4) of a data set's record, without crowds; None if it has no annotations."""
    if "annotations" not in record:
        return None
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record["annotations"]
        if not a.get("iscrowd", 0)
    ]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def last_stage_convs(model: nn.Module) -> list[str]:
    """Names in `model` of the convolutions larger than 1x1 of its backbone's last stage."""
    name, trunk = "backbone", model.backbone
    if hasattr(trunk, "bottom_up"):
        name, trunk = "backbone.bottom_up", trunk.bottom_up
    names = list(kernel_convs(trunk))
    return [f"{name}.{n}" for n in names if n.split(".")[0] == names[-1].split(".")[0]]


class EffectiveDilation:
    """Collects table 2 over images.

    Its layers are all deformable convolutions, and the plain ones of the backbone's last stage.

    Args:
        model: in evaluation mode.
        rules: see `Rules`.
    """

    def __init__(self, model: nn.Module, rules: Rules = Rules()):
        self.model = model
        self.rules = rules
        self.plain = last_stage_convs(model)
        self.layers: dict[str, LayerDilation] = {}

    @torch.no_grad()
    def add(self, inputs: dict, boxes: torch.Tensor | None) -> dict[str, LayerMap]:
        """Run one image.

        Args:
            inputs: "image" (C, H, W), resized, and "height", "width" of the original image.
            boxes: of its objects, (R, 4) in original image pixels. None if they are not known;
                filters then count in the column "all" only.

        Returns:
            the effective dilation of each layer, averaged over its groups; on its first map if it
            runs on several. All of them count in the table.
        """
        if needs_proposals(self.model):
            inputs = inputs | {"proposals": self._no_proposals(inputs["image"])}
        with record_offsets(self.model, self.plain) as record:
            self.model([inputs])
        image_size = inputs["height"], inputs["width"]
        pixel = [n / m for n, m in zip(image_size, inputs["image"].shape[-2:], strict=True)]
        maps = {}
        for conv in record.convs:
            dilation = effective_dilation(conv)
            centers = filter_centers(conv, record.input_size, pixel)
            known = torch.zeros(0, 4) if boxes is None else boxes
            sizes = object_sizes(centers, image_size, known, pixel, self.rules)
            values = layer_map(dilation.mean(dim=0), centers, image_size)
            maps.setdefault(conv.name, values)
            self._count(conv, dilation, sizes, boxes is not None)
        return maps

    def _count(self, conv, dilation, sizes, with_boxes):
        sizes = sizes.expand_as(dilation)
        if self.rules.border == "drop":
            sizes = sizes.masked_fill(leaves_the_map(conv), -1)
        if self.rules.groups == "first":
            dilation, sizes = dilation[:1], sizes[:1]
        row = self.layers.setdefault(
            conv.name, LayerDilation(conv.dilation, hasattr(self._layer(conv), "conv_offset"))
        )
        row.columns["all"].add(dilation[sizes >= 0])
        for i, size in enumerate(SIZES if with_boxes else ()):
            row.columns[size].add(dilation[sizes == i])

    @staticmethod
    def _no_proposals(image):
        # RoIs come after the convolutions, so none are needed here.
        return Instances(
            tuple(image.shape[-2:]), proposal_boxes=Boxes([]), objectness_logits=torch.zeros(0)
        )

    def _layer(self, conv):
        return self.model.get_submodule(conv.name)

    def as_dict(self) -> dict:
        """The table: {layer: {"dilation", "deformable", column: {"count", "mean", "std"}, ...}}."""
        return {
            name: {"dilation": list(row.dilation), "deformable": row.deformable}
            | {column: moments.as_dict() for column, moments in row.columns.items()}
            for name, row in self.layers.items()
        }
