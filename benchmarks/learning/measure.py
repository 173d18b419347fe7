"""Measurements of a trained network on the test images, and of what its offsets contribute.

The counts from which a metric is computed are kept for every image, so that contrasts can be
bootstrapped over images without the network.
"""

from contextlib import contextmanager

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from d2_deformable.analysis.effective_dilation import (
    EffectiveDilation,
    Rules,
    annotated_boxes,
)
from d2_deformable.checkpoint import StrictCheckpointer
from d2_deformable.data import DatasetMapper, read_mask, register_custom_datasets
from d2_deformable.layers import OffsetOutput

from .detection import detection_counts
from .endpoints import value
from .records import pack

# Sides of the squares between small, medium and large objects, in pixels of the photograph: COCO's.
LIMITS = (32, 96)


def measure(cfg, checkpoint, dataset: str, metrics) -> dict:
    """Measure a checkpoint: its number of parameters; metrics with the learned offsets, without
    them, and with those of another image; effective dilation by size; counts by image.

    Args:
        cfg: of the run, not frozen.
        dataset: name of a data set that cfg registers.
        metrics: names of metrics in endpoints.py.
    """
    register_custom_datasets(cfg)
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(checkpoint))
    model.eval()
    records, mapper = DatasetCatalog.get(dataset), DatasetMapper(cfg, False)
    inputs = [mapper(record) for record in records]
    count = segmentation_counts if hasattr(model, "sem_seg_head") else detection_counts
    counts = count(model, inputs, records)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": {metric: value(metric, counts) for metric in metrics},
        "counts": pack(counts),
    }
    outputs = offset_outputs(model)
    if outputs:
        for name, replace in (("zero_offsets", no_offset), ("other_offsets", PreviousOffset())):
            with replaced_offsets(outputs, replace):
                changed = count(model, inputs, records)
            result[name] = {metric: value(metric, changed) for metric in metrics}
    result["dilation"] = dilation_by_size(model, inputs, records)
    return result


@torch.no_grad()
def segmentation_counts(model, inputs, records) -> dict[str, np.ndarray]:
    """The counts from which mIoU is computed, see endpoints.py; ignored pixels are left out."""
    counts = []
    for one, record in zip(inputs, records, strict=True):
        logits = model([one])[0]["sem_seg"]
        truth = torch.from_numpy(read_mask(record["sem_seg_file_name"]).astype(np.int64))
        known = truth < len(logits)
        truth, predicted = truth[known], logits.argmax(0).cpu()[known]
        parts = (truth[truth == predicted], predicted, truth)
        counts.append(torch.stack([p.bincount(minlength=len(logits)) for p in parts], 1).numpy())
    return {"pixels": np.stack(counts)}


def no_offset(_, args, offset):
    return torch.zeros_like(offset)


class PreviousOffset:
    """Replaces a layer's offsets by those of the previous image: the offset map resized to the
    current one, or the offsets of its RoIs in order, repeated as needed."""

    def __init__(self):
        self.kept = {}

    def __call__(self, layer, args, offset):
        previous = self.kept.get(layer, offset)
        self.kept[layer] = offset
        if not len(previous):
            return offset
        if len(args) > 3:  # offset, mask, feature map, RoIs, ...
            return previous[torch.arange(len(offset)) % len(previous)]
        return F.interpolate(previous, offset.shape[-2:], mode="bilinear", align_corners=False)


def offset_outputs(model) -> list[OffsetOutput]:
    """The modules that the predictions of all deformable layers pass through."""
    return [module for module in model.modules() if isinstance(module, OffsetOutput)]


@contextmanager
def replaced_offsets(outputs, replace):
    """A context in which `outputs` return `replace(output, its arguments, offset)` as offset."""

    def hook(output, args, prediction):
        return prediction._replace(offset=replace(output, args, prediction.offset))

    handles = [output.register_forward_hook(hook) for output in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dilation_by_size(model, inputs, records) -> dict:
    """Effective dilation by the size of the object, or of the connected region, below a filter:
    {layer: {size: [mean, standard deviation, number of filters]}}."""
    table = EffectiveDilation(model, Rules(limits=LIMITS))
    for one, record in zip(inputs, records, strict=True):
        boxes = annotated_boxes(record)
        if boxes is None:
            boxes = region_boxes(read_mask(record["sem_seg_file_name"]))
        table.add({**one, "height": record["height"], "width": record["width"]}, boxes)
    columns = ("small", "medium", "large", "background", "all")
    return {
        layer: {
            column: [row[column]["mean"], row[column]["std"], row[column]["count"]]
            for column in columns
        }
        for layer, row in table.as_dict().items()
    }


def region_boxes(labels: np.ndarray, background: int = 0, ignore: int = 255) -> torch.Tensor:
    """Boxes (R, 4), x0, y0, x1, y1, of the connected regions of each class in labels (H, W)."""
    boxes = []
    for label in np.setdiff1d(np.unique(labels), [background, ignore]):
        mask = (labels == label).astype(np.uint8)
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for x0, y0, width, height, _ in statistics[1:].tolist():
            boxes.append([x0, y0, x0 + width, y0 + height])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
