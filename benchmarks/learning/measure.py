"""Measure a trained network on each test image, and the contribution of its offsets.

The counts of every image, whose sums give the metric, are stored so that contrasts can be
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

# COCO's limits between small, medium and large objects: sides of squares in pixels of the photo.
LIMITS = (32, 96)


def measure(cfg, checkpoint, dataset: str, metrics) -> dict:
    """Measure parameters, metrics, effective dilation by object size, and counts by image.

    Metrics are measured with the learned offsets, without offsets, and with those of another image.

    Args:
        cfg: config of the run, not frozen.
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
    """Collect the counts from which mIoU is computed, see endpoints.py, without ignored pixels."""
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
    """Replaces the offsets of a layer by those for the previous image.

    A map is resized to the new one; offsets of RoIs are repeated in their order.
    """

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
    """List the modules that the predictions of all deformable layers pass through."""
    return [module for module in model.modules() if isinstance(module, OffsetOutput)]


@contextmanager
def replaced_offsets(outputs, replace):
    """For the block, make `outputs` give `replace(output, its arguments, offset)` as offset."""

    def hook(output, args, prediction):
        return prediction._replace(offset=replace(output, args, prediction.offset))

    handles = [output.register_forward_hook(hook) for output in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dilation_by_size(model, inputs, records) -> dict:
    """Measure {layer: {size: [mean, standard deviation, filters]}} of `EffectiveDilation`.

    The size is that of the object, or of the connected region, at the centre of a filter.
    """
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
    """Find the boxes (R, 4), (x0, y0, x1, y1), of the connected regions of classes in (H, W)."""
    boxes = []
    for label in np.setdiff1d(np.unique(labels), [background, ignore]):
        mask = (labels == label).astype(np.uint8)
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for x0, y0, width, height, _ in statistics[1:].tolist():
            boxes.append([x0, y0, x0 + width, y0 + height])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
