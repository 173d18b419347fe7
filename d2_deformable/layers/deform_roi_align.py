"""Deformable RoI pooling of mmdetection's "dpool" and "mdpool" networks."""

import torch
from torch import nn

from ..ops import deform_roi_align
from ..ops._autocast import without_autocast
from .offset_prediction import OffsetOutput, OffsetPrediction, RoISampling
from .zero import fully_connected


class DeformRoIAlign(nn.Module):
    """Pools each RoI, predicts a shift of every bin from the result, and pools again.

    Like `DeformRoIPool`, but with mmcv's sampling (`d2_deformable.ops.deform_roi_align`) and three
    fully connected layers `offset_fc` instead of the paper's one. When modulated (Deformable
    ConvNets v2), two more layers, `mask_fc`, give every bin a factor sigmoid(prediction), which
    starts at 0.5, as in mmcv. The last layer of each starts at zero.

    Args:
        channels: channels of the feature map.
        output_size: bins per side k.
        hidden_channels: outputs of all fully connected layers except the last.
        modulated: also predict a factor per bin.
        gamma: scale of the normalised shifts.
        sampling_ratio: samples per bin and axis; 0 uses the bin's size in map pixels, rounded up.

    Example:
        >>> x, rois = torch.randn(1, 16, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> DeformRoIAlign(16, 7, modulated=True)(x, rois, spatial_scale=1 / 8).shape
        torch.Size([1, 16, 7, 7])

    Source: mmcv 2.2.0, DeformRoIPoolPack and ModulatedDeformRoIPoolPack of ops/deform_roi_pool.py.
    """

    offset_unit = "RoI sizes"
    offset_parameters = "offset_fc"
    # mmcv's number of samples depends on the bin's size; 4 is an approximation.
    roi_sampling = RoISampling(round_rois=False, min_size=None, samples=4, centred=True)

    def __init__(
        self,
        channels: int,
        output_size: int,
        *,
        hidden_channels: int = 1024,
        modulated: bool = False,
        gamma: float = 0.1,
        sampling_ratio: int = 0,
    ):
        super().__init__()
        self.output_size = output_size
        self.gamma = gamma
        self.sampling_ratio = sampling_ratio
        bins = output_size * output_size
        inputs, hidden = channels * bins, hidden_channels
        self.offset_fc = fully_connected(inputs, hidden, hidden, 2 * bins)
        self.mask_fc = fully_connected(inputs, hidden, bins) if modulated else None
        self.offset_prediction = OffsetOutput()

    def predict_offsets(self, x, rois, spatial_scale: float) -> OffsetPrediction:
        """Predict normalised shifts (R, 2, k, k), where channel 0 is dy and channel 1 is dx, and
        the factors (R, 1, k, k) or None. Under torch.autocast they are float32."""
        pooled = self._pool(x, rois, None, spatial_scale).flatten(1)
        k = self.output_size
        with without_autocast(x):
            pooled = pooled.to(self.offset_fc[0].weight.dtype)
            offset = self.offset_fc(pooled).view(-1, 2, k, k)
            mask = None
            if self.mask_fc is not None:
                mask = self.mask_fc(pooled).sigmoid().view(-1, 1, k, k)
        return self.offset_prediction(offset, mask, x, rois, spatial_scale)

    def forward(self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float) -> torch.Tensor:
        """
        Args:
            x: feature map (N, C, H, W).
            rois: (R, 5) of (image index, x0, y0, x1, y1) in input pixels.
            spatial_scale: feature-map pixels per input pixel, 1 / stride.

        Returns:
            (R, C, k, k)
        """
        offset, mask = self.predict_offsets(x, rois, spatial_scale)
        pooled = self._pool(x, rois, offset, spatial_scale)
        return pooled if mask is None else pooled * mask.to(pooled.dtype)

    def _pool(self, x, rois, offset, spatial_scale):
        return deform_roi_align(
            x,
            rois,
            offset,
            output_size=self.output_size,
            spatial_scale=spatial_scale,
            sampling_ratio=self.sampling_ratio,
            gamma=self.gamma,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, gamma={self.gamma}, "
            f"sampling_ratio={self.sampling_ratio}"
        )
