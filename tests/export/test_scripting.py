"""torch.jit.script takes the operators themselves; the checks of public functions are Python."""

import io

import torch
from torch import Tensor

from d2_deformable import ops


@torch.jit.script
def scripted(input: Tensor, offset: Tensor, weight: Tensor, rois: Tensor):
    conv = torch.ops.d2_deformable.deform_conv2d(
        input, offset, weight, None, [1, 1], [1, 1], [1, 1], None, "zero"
    )
    deform = torch.ops.d2_deformable.deform_roi_pool(
        conv,
        rois,
        None,
        output_size=[2, 2],
        spatial_scale=0.5,
        group_size=1,
        samples_per_part=4,
        gamma=0.1,
        round_rois=True,
    )
    return deform, torch.ops.d2_deformable.ps_roi_pool(
        conv, rois, output_size=[2, 2], spatial_scale=0.5, round_rois=True
    )


def test_scripted_calls_can_be_saved_and_loaded():
    input, offset, weight = (
        torch.randn(1, 4, 7, 9),
        torch.randn(1, 18, 7, 9),
        torch.randn(8, 4, 3, 3),
    )
    rois = torch.tensor([[0.0, 1, 2, 9, 12], [0, 3, 0, 17, 11]])
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    found = torch.jit.load(file)(input, offset, weight, rois)
    conv = ops.deform_conv2d(input, offset, weight, padding=1)
    for pool, pooled in zip((ops.deform_roi_pool, ops.ps_roi_pool), found, strict=True):
        assert torch.equal(pooled, pool(conv, rois, output_size=2, spatial_scale=0.5))
