"""Measure a trained network on each test image, and the contribution of its offsets.

The counts of every image, whose sums give the metric, are stored so that contrasts can be
bootstrapped over images without the network.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog

from d2_deformable.analysis.effective_dilation import (
    COLUMNS,
    SIZES,
    Moments,
    Rules,
    annotated_boxes,
    effective_dilation,
    last_stage_convs,
    object_sizes,
)
from d2_deformable.analysis.layer_map import filter_centers
from d2_deformable.analysis.record import record_offsets
from d2_deformable.checkpoint import load_model
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
    model = load_model(cfg, checkpoint)
    records, mapper = DatasetCatalog.get(dataset), DatasetMapper(cfg, False)
    inputs = [mapper(record) for record in records]
    count = segmentation_counts if hasattr(model, "sem_seg_head") else detection_counts
    counts = count(model, inputs, records)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": {metric: value(metric, counts) for metric in metrics},
        "counts": pack(counts),
    }
    if any(isinstance(module, OffsetOutput) for module in model.modules()):
        for name, changed in (("zero_offsets", ZeroOffsets), ("other_offsets", PreviousOffsets)):
            found = count(changed(model), inputs, records)
            result[name] = {metric: value(metric, found) for metric in metrics}
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


class ReplacedOffsets:
    """A model whose deformable layers use other offsets than they predict.

    Args:
        model: its forward is called through this object.
    """

    def __init__(self, model):
        self.model = model
        self.outputs = [m for m in model.modules() if isinstance(m, OffsetOutput)]

    def __call__(self, inputs):
        return self._run(inputs, self.replace)

    def replace(self, output, offset, is_map: bool):
        """Return the offset to use instead.

        Args:
            output: the `OffsetOutput` through which `offset` passes.
            is_map: whether `offset` is a map of a convolution, or one row for each RoI.
        """
        raise NotImplementedError

    def _run(self, inputs, replace):
        def hook(output, args, prediction):
            _, _, _, *rois = args
            return prediction._replace(offset=replace(output, prediction.offset, not rois))

        handles = [output.register_forward_hook(hook) for output in self.outputs]
        try:
            return self.model(inputs)
        finally:
            for handle in handles:
                handle.remove()


class ZeroOffsets(ReplacedOffsets):
    """All offsets are zero."""

    def replace(self, output, offset, is_map):
        return torch.zeros_like(offset)


class PreviousOffsets(ReplacedOffsets):
    """All offsets are those that the model predicted for the image of the previous call.

    A map is resized to the new one; offsets of RoIs are repeated in their order. The first image
    keeps its own.
    """

    def __init__(self, model):
        super().__init__(model)
        self.previous, self.own = {}, {}

    def __call__(self, inputs):
        # First record the model's own offsets: replacing those of lower layers would change the
        # predictions of upper ones.
        self.own = {}
        self._run(inputs, self._keep)
        result = super().__call__(inputs)
        self.previous = self.own
        return result

    def _keep(self, output, offset, is_map):
        self.own[output] = offset
        return offset

    def replace(self, output, offset, is_map):
        previous = self.previous.get(output, self.own[output])
        if not len(previous):
            return offset
        if is_map:
            return F.interpolate(previous, offset.shape[-2:], mode="bilinear", align_corners=False)
        return previous[torch.arange(len(offset)) % len(previous)]


@torch.no_grad()
def dilation_by_size(model, inputs, records) -> dict:
    """Measure {layer: {size: [mean, standard deviation, filters]}} of the effective dilation.

    The size is that of the object, or of the connected region, at the centre of a filter. A mean of
    no filter is None. Layers are those of `EffectiveDilation`.
    """
    plain = last_stage_convs(model)
    table = {}
    for one, record in zip(inputs, records, strict=True):
        with record_offsets(model, plain) as seen:
            model([one])
        image_size = record["height"], record["width"]
        pixel = [n / m for n, m in zip(image_size, one["image"].shape[-2:], strict=True)]
        for conv in seen.convs:
            dilation = effective_dilation(conv)
            sizes = sizes_at(filter_centers(conv, seen.input_size, pixel), record)
            columns = table.setdefault(conv.name, {column: Moments() for column in COLUMNS})
            sizes = sizes.expand_as(dilation)
            columns["all"].add(dilation[sizes >= 0])
            for index, size in enumerate(SIZES):
                columns[size].add(dilation[sizes == index])
    return {
        layer: {
            column: [moments.as_dict()[key] for key in ("mean", "std", "count")]
            for column, moments in row.items()
        }
        for layer, row in table.items()
    }


def sizes_at(centers, record) -> torch.Tensor:
    """Find the index into SIZES at each centre, (H, W); -1 beyond the image.

    Args:
        centers: y (H,) and x (W,), in pixels of the photograph.
        record: of the data set; its boxes count if it has any, else the regions of its mask.
    """
    boxes = annotated_boxes(record)
    image_size = record["height"], record["width"]
    if boxes is not None:
        return object_sizes(centers, image_size, boxes, rules=Rules(limits=LIMITS))
    sizes = region_sizes(read_mask(record["sem_seg_file_name"]))
    y, x = (axis.floor().long() for axis in centers)
    found = sizes[y.clamp(max=image_size[0] - 1)][:, x.clamp(max=image_size[1] - 1)]
    found[y >= image_size[0]] = -1
    found[:, x >= image_size[1]] = -1
    return found


def region_sizes(labels: np.ndarray, background: int = 0, ignore: int = 255) -> torch.Tensor:
    """Find the index into SIZES at each pixel of (H, W) class indices.

    The size of a pixel is the area of the connected region of its class.
    """
    sizes = np.full(labels.shape, SIZES.index("background"))
    small, large = LIMITS
    for label in np.setdiff1d(np.unique(labels), [background, ignore]):
        mask = (labels == label).astype(np.uint8)
        _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = statistics[:, cv2.CC_STAT_AREA][regions]
        sizes = np.where(mask == 0, sizes, (areas >= small**2) * 1 + (areas > large**2))
    return torch.from_numpy(sizes)
