"""The page's questions: detections, sampling points of a unit, and parts of a box."""

import base64
import io
import math
import secrets
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from PIL import Image

from ..analysis.record import Inspection, inspect_image, zero_offsets
from ..analysis.sampling import conv_sampling_points, part_boxes
from ..analysis.segmentation import class_colors
from ..analysis.visualize import found_above
from ..inference import Predictor
from ..utils.pixels import read_image

LOWEST_SCORE = 0.05  # of the detections that the page's threshold can show
KEPT = 8  # images
MAX_LAYERS = 4  # each multiplies the number of sampling points by 9


@dataclass
class Opened:
    """An image that was opened: its pixels, and its inspection with ("learned") and without
    offsets ("zero"), which is made when it is asked for."""

    pixels: np.ndarray
    inspections: dict[str, Inspection] = field(default_factory=dict)


class Explorer:
    """A network, and the last images that were opened.

    Every method that takes `offsets` expects "learned" or "zero". Coordinates are pixels of the
    original image: points [x, y], boxes [x0, y0, x1, y1].

    Args:
        predictor: whose threshold does not matter here.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.images: OrderedDict[str, Opened] = OrderedDict()
        self._lock = Lock()  # requests come from several threads; the hooks are not for that

    def open(self, file) -> dict:
        """Read an image, a path or a binary file, and run the network on it.

        Raises:
            OSError: it cannot be read.
        """
        pixels = read_image(file)
        name = secrets.token_hex(8)
        with self._lock:
            self.images[name] = Opened(pixels)
            while len(self.images) > KEPT:
                self.images.popitem(last=False)
        inspection = self._inspection(name, "learned")
        height, width = pixels.shape[:2]
        return {
            "id": name,
            "width": width,
            "height": height,
            "image": _data_url(Image.fromarray(pixels), "JPEG"),
            "layers": len(inspection.record.stack(MAX_LAYERS)),
            "parts": bool(inspection.record.pools),
        }

    def found(self, name: str, offsets: str) -> dict:
        """The detections {"detections": [{box, score, name}]}, or the colours of all classes."""
        inspection = self._inspection(name, offsets)
        names = self.predictor.class_names
        if inspection.labels is not None:
            colors = class_colors(len(names)).astype(np.uint8)
            picture = Image.fromarray(colors[inspection.labels.numpy()])
            return {"detections": [], "labels": _data_url(picture, "PNG")}
        found = found_above(inspection, LOWEST_SCORE)
        rows = zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes)
        return {
            "detections": [
                {"box": box, "score": score, "name": names[index]} for box, score, index in rows
            ]
        }

    def unit(self, name: str, offsets: str, x: float, y: float, layers: int) -> dict:
        """Where the unit at a point looks through the last `layers` deformable convolutions.

        Returns:
            "unit", the centre of its cell; "points" that it samples, and "grid", those of the plain
            network; points outside their map are left out.

        Raises:
            ValueError: the network has no deformable convolution, there are no or too many layers,
                or the point is not finite.
        """
        if not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"layers are {layers}; expected 1 to {MAX_LAYERS}")
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"the point is {x}, {y}; expected finite numbers")
        inspection = self._inspection(name, offsets)
        moved, grid = (
            conv_sampling_points(inspection, (y, x), layers, deformed) for deformed in (True, False)
        )
        return {
            "unit": moved.unit.flip(0).tolist(),
            "points": moved.points[moved.inside].flip(1).tolist(),
            "grid": grid.points[grid.inside].flip(1).tolist(),
        }

    def part_boxes(self, name: str, offsets: str, index: int) -> dict:
        """The "parts" of detection `index` of `found`, and the "bins" of the plain network.

        Raises:
            ValueError: the network has no deformable RoI pooling, or there is no such detection.
        """
        inspection = self._inspection(name, offsets)
        found = found_above(inspection, LOWEST_SCORE)
        if not 0 <= index < len(found):
            raise ValueError(f"there is no detection {index}, only {len(found)} of them")
        one = found[[index]]
        with self._lock, self._offsets(offsets):
            parts, bins = (
                part_boxes(inspection, one.pred_boxes.tensor, one.pred_classes, deformed)[0]
                for deformed in (True, False)
            )
        return {"parts": parts.tolist(), "bins": bins.tolist()}

    def _inspection(self, name: str, offsets: str) -> Inspection:
        with self._lock:
            if name not in self.images:
                raise ValueError("this image is no longer open: open it again")
            opened = self.images[name]
            if offsets not in opened.inspections:
                with self._offsets(offsets), torch.no_grad():
                    inputs = self.predictor.prepare(opened.pixels)
                    opened.inspections[offsets] = inspect_image(self.predictor.model, inputs)
            return opened.inspections[offsets]

    def _offsets(self, offsets: str):
        if offsets not in ("learned", "zero"):
            raise ValueError(f"offsets are {offsets!r}; expected 'learned' or 'zero'")
        return zero_offsets(self.predictor.model) if offsets == "zero" else nullcontext()


def _data_url(image: Image.Image, kind: str) -> str:
    content = io.BytesIO()
    image.save(content, kind, quality=92)
    data = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
