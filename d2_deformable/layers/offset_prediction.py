"""What deformable layers predict, where forward hooks see it."""

from typing import NamedTuple

from torch import Tensor, nn


class OffsetPrediction(NamedTuple):
    """What a deformable layer's `predict_offsets` returns.

    offset: (dy, dx) pairs, of the shape and unit that the layer states.
    mask: factors of the samples or bins; None where the layer is not modulated.
    """

    offset: Tensor
    mask: Tensor | None


class OffsetOutput(nn.Module):
    """Every prediction of a deformable layer passes through its child `offset_prediction`.

    A forward hook there, `hook(module, args, prediction)`, sees the `OffsetPrediction`, and in
    `args` the arguments of `forward`.
    """

    def forward(
        self,
        offset: Tensor,
        mask: Tensor | None,
        x: Tensor,
        rois: Tensor | None = None,
        spatial_scale: float | None = None,
    ) -> OffsetPrediction:
        """
        Args:
            offset, mask: see `OffsetPrediction`.
            x: feature map (N, C, H, W) that the layer samples.
            rois, spatial_scale: of RoI layers, see `DeformRoIPool.forward`.
        """
        return OffsetPrediction(offset, mask)
