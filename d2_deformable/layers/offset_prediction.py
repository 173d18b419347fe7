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
    """Passes on every prediction of a deformable layer; it is its child `offset_prediction`.

    A forward hook on it, `hook(module, args, prediction)`, sees the `OffsetPrediction`, and in
    `args` the arguments of `forward`.

    Example:
        >>> import torch
        >>> from d2_deformable.layers import DeformConv2d
        >>> layer, shapes = DeformConv2d(8, 8, 3, padding=1), []
        >>> def record(module, args, prediction):
        ...     shapes.append(tuple(prediction.offset.shape))
        >>> hook = layer.offset_prediction.register_forward_hook(record)
        >>> output = layer(torch.randn(1, 8, 10, 10))
        >>> shapes
        [(1, 18, 10, 10)]
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
