"""The offsets that deformable layers predict, exposed to forward hooks."""

from typing import NamedTuple

from torch import Tensor, nn


class OffsetPrediction(NamedTuple):
    """The result of a deformable layer's `predict_offsets`.

    offset: (dy, dx) pairs, in the shape and unit that the layer documents.
    mask: factors of the samples or bins; None where the layer is not modulated.
    """

    offset: Tensor
    mask: Tensor | None


class OffsetOutput(nn.Module):
    """The submodule `offset_prediction` of every deformable layer, which returns its predictions.

    A forward hook on it, `hook(module, args, prediction)`, sees the `OffsetPrediction`. Layers pass
    the arguments of `forward` by position and in its order, so hooks may rely on
    `args == (offset, mask, x)`, followed by `(rois, spatial_scale)` for RoI layers.
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
            rois, spatial_scale: for RoI layers, see `DeformRoIPool.forward`.
        """
        return OffsetPrediction(offset, mask)
