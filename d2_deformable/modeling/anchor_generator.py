"""Anchors whose sides are rounded as in the released code."""

import torch
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import BufferList, DefaultAnchorGenerator

from ..compat import require_private

require_private(DefaultAnchorGenerator, "_calculate_anchors")


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """The anchors of the released rpn/generate_anchor.py, for networks trained with them.

    An anchor starts as one stride by one stride. Its sides are rounded after the aspect ratio is
    applied, and only then scaled: at stride 16 the ratios 0.5, 1 and 2 give (width, height)
    23 x 12, 16 x 16 and 11 x 22 times size / 16. `DefaultAnchorGenerator` rounds nothing; its sides
    differ by up to 6 %.

    The released boxes include their last pixel: (x0, y0, x1, y1) there is (x0, y0, x1 + 1, y1 + 1)
    here, so the centre of the first anchor is 8 instead of 7.5. With MODEL.ANCHOR_GENERATOR.OFFSET
    0.5 the anchors are exactly the released ones, and box deltas mean the same.
    """

    def _calculate_anchors(self, sizes, aspect_ratios):
        cells = zip(sizes, aspect_ratios, self.strides, strict=True)
        return BufferList([_cell_anchors(*cell) for cell in cells])


def _cell_anchors(sizes, aspect_ratios, stride) -> torch.Tensor:
    """(len(sizes) * len(aspect_ratios), 4): boxes in pixels around 0, in Detectron2's order."""
    half = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = round(stride / ratio**0.5)
            half.append([width * size / stride / 2, round(width * ratio) * size / stride / 2])
    half = torch.tensor(half)
    return torch.cat([-half, half], dim=1)
