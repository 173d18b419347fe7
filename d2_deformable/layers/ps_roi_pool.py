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
from .deform_roi_pool import check_samples
from .offset_prediction import OffsetOutput, OffsetPrediction, RoISampling
from .zero import ZeroConv2d


class PSRoIPredictor(nn.Module):
    """Predicts one number per RoI and output, by a vote of the k x k parts of the RoI.

    A 1x1 convolution `score_maps` makes k*k position-sensitive maps per output. Bin (i, j) of a
    RoI pools from map (i, j) only, and the output is the mean over the bins. When deformable,
    another 1x1 convolution `offset_maps` on the same features gives each bin a shift (dy, dx),
    normalised by the RoI's size. Its maps start at zero and are also pooled position-sensitively.
    When modulated (Deformable ConvNets v2), further maps of `offset_maps` give each bin a factor
    sigmoid(prediction), which starts at 0.5. The authors modulate RoI pooling in Faster R-CNN only;
    factors per set of shifts follow what the paper does for shifts.

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
        modulated: also predict a factor per bin and set of shifts; needs `offset_classes`.
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
        modulated: bool = False,
        gamma: float = 0.1,
        samples_per_part: int = 4,
        round_rois: bool = True,
    ):
        super().__init__()
        self.output_size = output_size
        check_scale("PSRoIPredictor", spatial_scale)
        self.spatial_scale = spatial_scale
        self.offset_classes = offset_classes
        self.interpolate = interpolate or offset_classes > 0
        if self.interpolate:
            check_samples("PSRoIPredictor", samples_per_part)
        self.modulated = modulated
        self.gamma = gamma
        self.samples_per_part = samples_per_part
        self.round_rois = round_rois
        bins = output_size * output_size
        self.score_maps = nn.Conv2d(in_channels, num_outputs * bins, 1)
        nn.init.normal_(self.score_maps.weight, std=0.01)
        nn.init.zeros_(self.score_maps.bias)  # type: ignore[arg-type]
        self.offset_maps = None
        if offset_classes:
            per_bin = (3 if modulated else 2) * offset_classes
            self.offset_maps = ZeroConv2d(in_channels, per_bin * bins, 1)
            self.offset_prediction = OffsetOutput()

    @property
    def roi_sampling(self) -> RoISampling:
        return RoISampling(self.round_rois, MIN_SIZE, self.samples_per_part, centred=False)

    def predict_offsets(
        self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float | None = None
    ) -> OffsetPrediction:
        """Predict normalised shifts (R, 2 * offset_classes, k, k), where channel 2c is dy and
        2c + 1 is dx, and the factors (R, offset_classes, k, k) or None. Under torch.autocast they
        are float32."""
        assert self.offset_maps is not None, "with offset_classes 0 there are no offsets"
        scale = self.spatial_scale if spatial_scale is None else spatial_scale
        with without_autocast(x):
            maps = self.offset_maps(x.to(self.offset_maps.weight.dtype))
            offset, mask = self._deform_pool(maps, rois, None, scale), None
            if self.modulated:
                offset, mask = offset.split([2 * self.offset_classes, self.offset_classes], dim=1)
                mask = mask.sigmoid()
        return self.offset_prediction(offset, mask, x, rois, scale)

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
        elif self.offset_maps is None:
            pooled = self._deform_pool(maps, rois, None, scale)
        else:
            offset, mask = self.predict_offsets(x, rois, scale)
            pooled = self._deform_pool(maps, rois, offset, scale)
            if mask is not None:
                # (R, offset_classes, outputs of each, k, k); ONNX cannot infer sizes where R is 0.
                sets, k = self.offset_classes, self.output_size
                outputs = self.score_maps.out_channels // (sets * k * k)
                pooled = pooled.reshape(-1, sets, outputs, k, k)
                pooled = pooled * mask[:, :, None].to(pooled.dtype)
                pooled = pooled.reshape(-1, sets * outputs, k, k)
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
            f"interpolate={self.interpolate}, modulated={self.modulated}, gamma={self.gamma}, "
            f"samples_per_part={self.samples_per_part}, round_rois={self.round_rois}"
        )
