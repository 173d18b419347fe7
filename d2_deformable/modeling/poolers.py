"""Average, deformable and the released max pooling of RoIs, as subclasses of ROIPooler."""

from itertools import pairwise

import torch
from detectron2.layers import nonzero_tuple
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import nn

from ..layers import DeformRoIAlign, DeformRoIPool, RoIAveragePool


class LevelPooler(ROIPooler):
    """Assigns RoIs to the levels of a pyramid as Detectron2 does (FPN eq. 1), without weights.

    Args:
        output_size: bins per side.
        scales: 1 / stride of each level, finest first.

    Raises:
        ValueError: the levels do not form a pyramid.
    """

    def __init__(self, output_size: int, scales):
        if any(fine != 2 * coarse for fine, coarse in pairwise(scales)):
            raise ValueError(
                f"RoIs are pooled from maps of strides {[round(1 / s) for s in scales]}; expected "
                "levels whose strides double from each to the next: choose such "
                "MODEL.ROI_HEADS.IN_FEATURES"
            )
        # The base class keeps the size and the level range; its own pooling layers, which have no
        # weights, are replaced.
        super().__init__(output_size, scales, sampling_ratio=0, pooler_type="ROIPool")
        self.level_poolers = nn.ModuleList()
        self.scales = tuple(scales)

    def on_levels(self, functions, x, box_lists) -> torch.Tensor:
        """Apply a function to each level and to the RoIs that belong to it.

        Args:
            functions: one per level, `function(feature, rois, scale)`, which returns one row for
                each of the rois (r, 5) of (image index, x0, y0, x1, y1) in input pixels.
            x: a list of feature maps (N, C, H, W), one per level.
            box_lists: N Boxes in input pixels, R in all.

        Returns:
            (R, ...): the rows, in the order of the boxes.
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return functions[0](x[0], rois, self.scales[0])
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        results, order = [], []
        per_level = zip(functions, x, self.scales, strict=True)
        for level, (function, feature, scale) in enumerate(per_level):
            order.append(nonzero_tuple(levels == level)[0])
            results.append(function(feature, rois[order[-1]], scale))
        return torch.cat(results)[torch.cat(order).argsort()]

    def scales_of(self, x, box_lists) -> torch.Tensor:
        """1 / stride (R,) of the level that each RoI is pooled from; see `on_levels`."""

        def scale_of(feature, rois, scale):
            return rois.new_full((len(rois),), scale)

        return self.on_levels([scale_of] * len(self.scales), x, box_lists)


class ROIAveragePooler(LevelPooler):
    """Applies a RoI pooling layer to one feature map or to the levels of a pyramid.

    Args:
        roi_pool: the layer, shared by all levels, like the head after it; or one per level, in an
            nn.ModuleList. It is called like `RoIAveragePool`.
        scales: see `LevelPooler`.
    """

    def __init__(self, roi_pool: RoIAveragePool | DeformRoIAlign | nn.ModuleList, scales):
        first = roi_pool[0] if isinstance(roi_pool, nn.ModuleList) else roi_pool
        super().__init__(first.output_size, scales)  # type: ignore[arg-type]
        self.roi_pool = roi_pool

    @property
    def level_pools(self) -> list[nn.Module]:
        """The layer of each level."""
        if isinstance(self.roi_pool, nn.ModuleList):
            return list(self.roi_pool)
        return [self.roi_pool] * len(self.scales)

    def forward(self, x, box_lists):
        """
        Args:
            x: a list of feature maps (N, C, H, W), one per level.
            box_lists: N Boxes in input pixels.

        Returns:
            (R, C, k, k) for the R boxes of all images, in order.
        """
        return self.on_levels(self.level_pools, x, box_lists)


class DeformROIPooler(ROIAveragePooler):
    """`ROIAveragePooler` whose layers move the parts of a RoI by learned offsets.

    Args:
        roi_pool: a `DeformRoIPool` or `DeformRoIAlign`, or one per level.
        scales: see `ROIAveragePooler`.
    """

    def __init__(self, roi_pool: DeformRoIPool | DeformRoIAlign | nn.ModuleList, scales):
        super().__init__(roi_pool, scales)

    def predict_offsets(self, x, box_lists) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict what `forward` moves the parts of the RoIs by.

        Args:
            x, box_lists: see `forward`.

        Returns:
            normalised shifts (R, 2, k, k) of (dy, dx), and the scale (R,) of the level that each
            RoI is pooled from.
        """

        def offsets(roi_pool):
            return lambda *arguments: roi_pool.predict_offsets(*arguments).offset

        functions = [offsets(roi_pool) for roi_pool in self.level_pools]
        return self.on_levels(functions, x, box_lists), self.scales_of(x, box_lists)


class LegacyROIPooler(ROIPooler):
    """RoI max pooling that reads boxes as the released Faster R-CNN does.

    The released operator, MXNet's ROIPooling, equals Detectron2's "ROIPool": corners are scaled,
    then rounded. But its second corner is the last pixel of a box, one less than Detectron2's.
    """

    def __init__(self, output_size, scales):
        super().__init__(output_size, scales, sampling_ratio=0, pooler_type="ROIPool")

    def forward(self, x, box_lists):
        """Same interface as Detectron2's: maps per level, Boxes per image -> (R, C, k, k)."""
        return super().forward(x, [_to_last_pixel(boxes) for boxes in box_lists])


def _to_last_pixel(boxes: Boxes) -> Boxes:
    return Boxes(boxes.tensor - boxes.tensor.new_tensor([0.0, 0.0, 1.0, 1.0]))
