"""Average RoI pooling of bilinear samples, plain and deformable (paper sec. 2.2, figure 3)."""

import torch
from torch import nn

from ..ops import deform_roi_pool, ps_roi_pool
from ..ops._autocast import without_autocast
from ..ops.geometry import MIN_SIZE
from .offset_prediction import OffsetOutput, OffsetPrediction, RoISampling
from .zero import ZeroLinear, fully_connected


def check_samples(layer: str, samples_per_part: int) -> None:
    """Refuse bins without samples, which cannot be shifted.

    Raises:
        ValueError: there is not one sample.
    """
    if samples_per_part < 1:
        raise ValueError(
            f"{layer}: samples_per_part is {samples_per_part}; expected at least 1 (in a YAML: "
            "MODEL.ROI_BOX_HEAD.DEFORM_SAMPLES_PER_PART; 0 is for ROIAveragePool)"
        )


class RoIAveragePool(nn.Module):
    """Plain average RoI pooling (paper eq. 5): deformable pooling without offsets.

    It samples like `DeformRoIPool`, so that the two differ only by the learned offsets. Without
    samples it averages the whole pixels from floor to ceil of each bin, which is equation 5 to the
    letter and has no deformable twin.

    Args:
        output_size: bins per side k.
        samples_per_part: samples per bin and axis; 0 averages whole pixels.
        round_rois: round box corners to whole pixels before scaling, as the released operator does.

    Example:
        >>> x, rois = torch.randn(1, 16, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> RoIAveragePool(7)(x, rois, spatial_scale=1 / 8).shape
        torch.Size([1, 16, 7, 7])
    """

    def __init__(self, output_size: int, *, samples_per_part: int = 4, round_rois: bool = True):
        super().__init__()
        self.output_size = output_size
        self.samples_per_part = samples_per_part
        self.round_rois = round_rois

    def forward(self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float) -> torch.Tensor:
        """
        Args:
            x: feature map (N, C, H, W).
            rois: (R, 5) of (image index, x0, y0, x1, y1) in input pixels.
            spatial_scale: feature-map pixels per input pixel, 1 / stride.

        Returns:
            (R, C, k, k)
        """
        return self._pool(x, rois, spatial_scale)

    def _pool(self, x, rois, spatial_scale, offset=None, gamma=0.0):
        if self.samples_per_part == 0:
            return self._pool_whole_pixels(x, rois, spatial_scale)
        return deform_roi_pool(
            x,
            rois,
            offset,
            output_size=self.output_size,
            spatial_scale=spatial_scale,
            samples_per_part=self.samples_per_part,
            gamma=gamma,
            round_rois=self.round_rois,
        )

    def _pool_whole_pixels(self, x, rois, spatial_scale):
        """Position-sensitive pooling where all bins read the same channels, a few at a time: each
        channel takes as many copies as there are bins."""
        bins = self.output_size * self.output_size
        pooled = [
            ps_roi_pool(
                channels.repeat_interleave(bins, dim=1),
                rois,
                output_size=self.output_size,
                spatial_scale=spatial_scale,
                round_rois=self.round_rois,
            )
            for channels in x.split(16, dim=1)
        ]
        return torch.cat(pooled, dim=1)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, samples_per_part={self.samples_per_part}, "
            f"round_rois={self.round_rois}"
        )


class DeformRoIPool(RoIAveragePool):
    """Pools each RoI, predicts a shift of every bin from the result, and pools again.

    One fully connected layer `offset_fc`, which starts at zero, turns the first pooling into
    normalised shifts (dy, dx) of every bin, in units of `gamma` times the RoI's height and width.
    Paper sec. 2.3 trains it at 0.01 of the learning rate (SOLVER.LR_MULTIPLIERS).

    Args:
        channels: channels of the feature map.
        output_size: bins per side k.
        gamma: scale of the normalised shifts.
        kwargs: arguments of `RoIAveragePool`.

    Example:
        >>> x, rois = torch.randn(1, 16, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> layer = DeformRoIPool(16, 7)
        >>> layer(x, rois, spatial_scale=1 / 8).shape
        torch.Size([1, 16, 7, 7])
        >>> layer.predict_offsets(x, rois, 1 / 8).offset.shape
        torch.Size([1, 2, 7, 7])
    """

    offset_unit = "RoI sizes"
    offset_parameters = "offset_fc"

    def __init__(self, channels: int, output_size: int, *, gamma: float = 0.1, **kwargs):
        super().__init__(output_size, **kwargs)
        check_samples(type(self).__name__, self.samples_per_part)
        self.gamma = gamma
        bins = output_size * output_size
        self.offset_fc: nn.Module = ZeroLinear(channels * bins, 2 * bins)
        self.offset_prediction = OffsetOutput()

    @property
    def roi_sampling(self) -> RoISampling:
        return RoISampling(self.round_rois, MIN_SIZE, self.samples_per_part, centred=False)

    def predict_offsets(self, x, rois, spatial_scale: float) -> OffsetPrediction:
        """Predict normalised shifts (R, 2, k, k), where channel 0 is dy and channel 1 is dx. Under
        torch.autocast they are float32."""
        offset = self._predict(x, rois, spatial_scale)
        return self.offset_prediction(offset, None, x, rois, spatial_scale)

    def _predict(self, x, rois, spatial_scale):
        """What the fully connected layers give: (R, 2 or 3, k, k)."""
        pooled = self._pool(x, rois, spatial_scale).flatten(1)
        with without_autocast(x):
            prediction = self.offset_fc(pooled.to(next(self.offset_fc.parameters()).dtype))
        bins = self.output_size * self.output_size
        return prediction.view(-1, prediction.shape[1] // bins, *2 * [self.output_size])

    def forward(self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float) -> torch.Tensor:
        """Shapes are those of `RoIAveragePool`."""
        offset, _ = self.predict_offsets(x, rois, spatial_scale)
        return self._pool(x, rois, spatial_scale, offset, self.gamma)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma}"


class ModulatedDeformRoIPool(DeformRoIPool):
    """`DeformRoIPool` that also gives every bin a factor (Deformable ConvNets v2, sec. 3.2).

    Three fully connected layers `offset_fc` turn the first pooling into the shifts and the factors
    sigmoid(prediction) of all bins. The last layer starts at zero, hence the factors at 0.5. The
    others start at N(0, 0.01) and, like all of them, learn at the rate of the network.

    Args:
        channels, output_size, kwargs: see `DeformRoIPool`.
        hidden_channels: outputs of the first two layers.

    Example:
        >>> x, rois = torch.randn(1, 16, 8, 8), torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])
        >>> layer = ModulatedDeformRoIPool(16, 7)
        >>> layer(x, rois, spatial_scale=1 / 8).shape
        torch.Size([1, 16, 7, 7])
        >>> layer.predict_offsets(x, rois, 1 / 8).mask.shape
        torch.Size([1, 1, 7, 7])

    Source: Zhu et al. 2019 and their DCNv2_op/example_symbol.py, which has dx before dy. (Their
    later PyTorch port, like mmcv, has layers of their own for the factors: see `DeformRoIAlign`.)
    """

    def __init__(self, channels: int, output_size: int, *, hidden_channels: int = 1024, **kwargs):
        super().__init__(channels, output_size, **kwargs)
        bins = output_size * output_size
        # What is drawn here leaves the weights of the layers built afterwards as they are in the
        # plain twin.
        with torch.random.fork_rng(devices=[]):
            self.offset_fc = fully_connected(
                channels * bins, hidden_channels, hidden_channels, 3 * bins
            )
            *hidden, _ = (m for m in self.offset_fc.modules() if isinstance(m, nn.Linear))
            for layer in hidden:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def predict_offsets(self, x, rois, spatial_scale: float) -> OffsetPrediction:
        """Predict normalised shifts (R, 2, k, k), where channel 0 is dy and channel 1 is dx, and
        the factors (R, 1, k, k). Under torch.autocast they are float32."""
        offset, mask = self._predict(x, rois, spatial_scale).split([2, 1], dim=1)
        return self.offset_prediction(offset, mask.sigmoid(), x, rois, spatial_scale)

    def forward(self, x: torch.Tensor, rois: torch.Tensor, spatial_scale: float) -> torch.Tensor:
        """Shapes are those of `RoIAveragePool`."""
        offset, mask = self.predict_offsets(x, rois, spatial_scale)
        pooled = self._pool(x, rois, spatial_scale, offset, self.gamma)
        assert mask is not None
        return pooled * mask.to(pooled.dtype)
