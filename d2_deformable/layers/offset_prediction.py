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


class RoISampling(NamedTuple):
    """Placement of a RoI layer's samples, see `d2_deformable.ops.geometry`.

    round_rois, min_size: of `roi_boxes`.
    samples: per bin and axis.
    centred: of `samples_of_bins`.
    """

    round_rois: bool
    min_size: float | None
    samples: int
    centred: bool


class OffsetOutput(nn.Module):
    """The submodule `offset_prediction` of every deformable layer, which returns its predictions.

    A forward hook on it, `hook(module, args, prediction)`, sees the `OffsetPrediction`. Layers pass
    the arguments of `forward` by position and in its order, so hooks may rely on
    `args == (offset, mask, x)`, followed by `(rois, spatial_scale)` for RoI layers.

    The layer's attributes give the rest: `offset_unit`, "cells" of the feature map or "RoI sizes";
    `offset_parameters`, a part of the names of the parameters that predict the offsets; and, if it
    pools RoIs, `gamma`, `output_size` and `roi_sampling`, a `RoISampling`.

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
