"""What a trained network does on the test images, image by image, and what its offsets are for.

For every image the numbers are kept of which the metric is a sum, so that contrasts can be
bootstrapped over images without the network.
"""

import base64
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from d2_deformable.analysis.effective_dilation import EffectiveDilation, Rules
from d2_deformable.checkpoint import StrictCheckpointer
from d2_deformable.data import DatasetMapper, read_mask, register_custom_datasets
from d2_deformable.layers import DeformConv2d

# Sides of the squares between small, medium and large objects, in pixels of the photograph: COCO's.
LIMITS = (32, 96)


def measure(cfg, checkpoint, dataset: str) -> dict:
    """Parameters; metric with the learned offsets, without, and with those of another image;
    effective dilation by size; counts by image.

    Args:
        cfg: of the run, not frozen.
        dataset: registered by cfg.
    """
    register_custom_datasets(cfg)
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(checkpoint))
    model.eval()
    records, mapper = DatasetCatalog.get(dataset), DatasetMapper(cfg, False)
    inputs = [mapper(record) for record in records]
    counts = segmentation_counts(model, inputs, records)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": {"mIoU": mean_iou(counts.sum(0))},
        "counts": pack(counts),
    }
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
    if layers:
        for name, replace in (("zero_offsets", no_offset), ("other_offsets", PreviousOffset())):
            with replaced_offsets(layers, replace):
                changed = segmentation_counts(model, inputs, records)
            result["test"][name] = mean_iou(changed.sum(0))
    result["dilation"] = dilation_by_size(model, inputs, records)
    return result


@torch.no_grad()
def segmentation_counts(model, inputs, records) -> np.ndarray:
    """Pixels (images, classes, 3) of each class: right, predicted, true; ignored ones left out."""
    counts = []
    for one, record in zip(inputs, records, strict=True):
        logits = model([one])[0]["sem_seg"]
        truth = torch.from_numpy(read_mask(record["sem_seg_file_name"]).astype(np.int64))
        known = truth < len(logits)
        truth, predicted = truth[known], logits.argmax(0).cpu()[known]
        parts = (truth[truth == predicted], predicted, truth)
        counts.append(torch.stack([p.bincount(minlength=len(logits)) for p in parts], 1).numpy())
    return np.stack(counts)


def mean_iou(counts: np.ndarray) -> float:
    """mIoU in percent of (..., classes, 3) pixels, over the classes that are there."""
    right, predicted, true = np.moveaxis(counts.astype(float), -1, 0)
    union = predicted + true - right
    return float(100 * np.nanmean(np.divide(right, union, where=union > 0, out=union * np.nan)))


def pack(counts: np.ndarray) -> dict:
    """An array of integers as text: JSON of a few KB."""
    data = zlib.compress(np.ascontiguousarray(counts, "<i4").tobytes(), 9)
    return {"shape": list(counts.shape), "zlib_base64": base64.b64encode(data).decode()}


def unpack(packed: dict) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(packed["zlib_base64"]))
    return np.frombuffer(data, "<i4").reshape(packed["shape"])


def no_offset(_, offset):
    return torch.zeros_like(offset)


class PreviousOffset:
    """The offsets that a layer had for the image before, resized to the map of this one."""

    def __init__(self):
        self.kept = {}

    def __call__(self, layer, offset):
        previous = self.kept.get(layer, offset)
        self.kept[layer] = offset
        return F.interpolate(previous, offset.shape[-2:], mode="bilinear", align_corners=False)


@contextmanager
def replaced_offsets(layers, replace):
    """For the block, `layers` use `replace(layer, offset)` of what their `conv_offset` predicts."""

    def hook(layer, _, offset):
        return replace(layer, offset)

    handles = [layer.conv_offset.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dilation_by_size(model, inputs, records) -> dict:
    """{layer: {size: [mean, standard deviation, filters]}} of `EffectiveDilation`, by the size of
    the connected region that a filter stands on."""
    table = EffectiveDilation(model, Rules(limits=LIMITS))
    for one, record in zip(inputs, records, strict=True):
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
    """Boxes (R, 4) of the connected regions of each class of (H, W), x0, y0, x1, y1."""
    boxes = []
    for label in np.setdiff1d(np.unique(labels), [background, ignore]):
        mask = (labels == label).astype(np.uint8)
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for x0, y0, width, height, _ in statistics[1:].tolist():
            boxes.append([x0, y0, x0 + width, y0 + height])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
