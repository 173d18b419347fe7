"""Position-sensitive score maps, pooled per RoI and averaged: R-FCN's last layer.

Source: R-FCN (Dai et al. 2016) and paper sec. 2.2 "Deformable Position-Sensitive RoI Pooling";
layer layout of the released rfcn/symbols/resnet_v1_101_rfcn_dcn.py.
"""

import torch
from torch import nn

from ..ops import deform_roi_pool, ps_roi_pool
from ..ops._autocast import without_autocast
from ..ops._checks import check_scale, check_tensors
from ..ops.geometry import MIN_SIZE
from .offset_prediction import OffsetOutput, OffsetPrediction, RoISampling
from .zero import ZeroConv2d


class PSRoIPredictor(nn.Module):
    """Predicts one number per RoI and output, by a vote of the k x k parts of the RoI.

    A 1x1 convolution `score_maps` makes k*k position-sensitive maps per output. Bin (i, j) of a
    RoI pools from map (i, j) only, and the output is the mean over the bins. When deformable,
    another 1x1 convolution `offset_maps` on the same features gives each bin a shift (dy, dx),
    normalised by the RoI's size. Its maps start at zero and are also pooled position-sensitively.

    Args:
        in_channels: channels of the features.
        num_outputs: outputs per RoI, e.g. K + 1 class scores or 4 box deltas.
        output_size: bins per side k.
        spatial_scale: feature-map pixels per input pixel, 1 / stride; calls on another level of a
            feature pyramid give its own.
        offset_classes: 0 for plain pooling; n > 0 for deformable pooling with n sets of shifts,
            the outputs divided evenly among them (K + 1 for scores, 1 for boxes in the paper).
        interpolate: plain pooling averages bilinear samples, as deformable pooling does with
            offsets of zero; False averages whole cells, as released with R-FCN.
        gamma, samples_per_part, round_rois: see `d2_deformable.ops.deform_roi_pool`.

    Example:
        >>> features, rois = torch.randn(1, 16, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> scores = PSRoIPredictor(16, 3, 7, spatial_scale=1 / 8, offset_classes=3)
        >>> scores(features, rois).shape
        torch.Size([1, 3])
        >>> scores.predict_offsets(features, rois).offset.shape
        torch.Size([1, 6, 7, 7])
    """

    offset_unit = "RoI sizes"
    offset_parameters = "offset_maps"

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        output_size: int,
        *,
        spatial_scale: float,
        offset_classes: int = 0,
        interpolate: bool = False,
        gamma: float = 0.1,
        samples_per_part: int = 4,
        round_rois: bool = True,
    ):
        super().__init__()
        self.output_size = output_size
        check_scale("PSRoIPredictor", spatial_scale)
        self.spatial_scale = spatial_scale
        self.interpolate = interpolate or offset_classes > 0
        self.gamma = gamma
        self.samples_per_part = samples_per_part
        self.round_rois = round_rois
        bins = output_size * output_size
        self.score_maps = nn.Conv2d(in_channels, num_outputs * bins, 1)
        nn.init.normal_(self.score_maps.weight, std=0.01)
        nn.init.zeros_(self.score_maps.bias)  # type: ignore[arg-type]
        self.offset_maps = None
        if offset_classes:
            self.offset_maps = ZeroConv2d(in_channels, 2 * offset_classes * bins, 1)
            self.offset_prediction = OffsetOutput()

    @property
    def roi_sampling(self) -> RoISampling:
        return RoISampling(self.round_rois, MIN_SIZE, self.samples_per_part, centred=False)

    def predict_offsets(
        self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float | None = None
    ) -> OffsetPrediction:
        """Predict normalised shifts (R, 2 * offset_classes, k, k), where channel 2c is dy and
        2c + 1 is dx. Under torch.autocast they are float32."""
        assert self.offset_maps is not None, "with offset_classes 0 there are no offsets"
        scale = self.spatial_scale if spatial_scale is None else spatial_scale
        with without_autocast(x):
            maps = self.offset_maps(x.to(self.offset_maps.weight.dtype))
            offset = self._deform_pool(maps, rois, None, scale)
        return self.offset_prediction(offset, None, x, rois, scale)

    def forward(
        self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float | None = None
    ) -> torch.Tensor:
        """
        Args:
            x: features (N, in_channels, H, W).
            rois: (R, 5) of (image index, x0, y0, x1, y1) in input pixels.
            spatial_scale: of x; None is the scale of the layer.

        Returns:
            (R, num_outputs)
        """
        check_tensors("PSRoIPredictor", x=x, rois=rois)
        scale = self.spatial_scale if spatial_scale is None else spatial_scale
        maps = self.score_maps(x)
        if not self.interpolate:
            pooled = ps_roi_pool(
                maps,
                rois,
                output_size=self.output_size,
                spatial_scale=scale,
                round_rois=self.round_rois,
            )
        else:
            offset = None
            if self.offset_maps is not None:
                offset = self.predict_offsets(x, rois, scale).offset
            pooled = self._deform_pool(maps, rois, offset, scale)
        return pooled.mean(dim=(2, 3))

    def _deform_pool(self, maps, rois, offset, spatial_scale):
        return deform_roi_pool(
            maps,
            rois,
            offset,
            output_size=self.output_size,
            spatial_scale=spatial_scale,
            group_size=self.output_size,
            samples_per_part=self.samples_per_part,
            gamma=self.gamma,
            round_rois=self.round_rois,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"interpolate={self.interpolate}, gamma={self.gamma}, "
            f"samples_per_part={self.samples_per_part}, round_rois={self.round_rois}"
        )
