"""Whether the offsets of deformable layers learn, stay at zero or run away, seen while training.

Users of the released code met both failures: offsets that never leave zero, which leave the
network a plain one, and offsets of hundreds of cells, which sample nothing but zeros.
"""

import logging
import math
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.engine import HookBase
from torch.nn.parallel import DistributedDataParallel

from ..layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor

STATISTICS = ("mean", "std", "p99", "outside")
MAX_SORTED = 2**16  # values of which the percentile is taken, evenly spread over all
MAX_ROI_VALUES = 2**18  # shifts that are looked at, those of evenly spread RoIs


class OffsetHealth(HookBase):
    """Writes statistics of every deformable layer's offsets, and warns in words.

    Every `period` iterations, of the offsets that the training step itself predicts (all its
    forward passes with gradients; under DDP those of the main process), the scalars
    `offsets/<layer>/...` go to TensorBoard and metrics.json:

    mean, std, p99: mean, standard deviation and 99th percentile of the length of (dy, dx): in cells
        of the feature map for `DeformConv2d`; for RoI layers in fractions of the RoI's height and
        width, gamma included.
    outside: share of samples whose nearest cell is not one of the map's, so that they see zero (or,
        in RoI pooling, do not count). The fixed grid of a padded convolution has such ones too.

    It must stand before the writers of its period, so that they write what it put.

    Args:
        model: where the layers are; one without any makes this hook idle.
        period: iterations; 0 switches it off.
        zero_after: iterations after which offsets that stay at zero are told of; a shorter training
            tells at its end.
        min_conv, min_roi: a layer whose p99 is smaller stays at zero.
        max_conv: a convolution whose p99 is larger than this share of its map's shorter side runs
            away; so does a RoI layer whose p99 is larger than `max_roi`.
        max_outside: so does a layer of which this share of samples was moved out of its map.

    Raises:
        ValueError: a negative period.
    """

    @configurable
    def __init__(
        self,
        model,
        *,
        period: int = 20,
        zero_after: int = 1000,
        min_conv: float = 0.01,
        min_roi: float = 0.001,
        max_conv: float = 0.5,
        max_roi: float = 1.0,
        max_outside: float = 0.25,
    ):
        if period < 0:
            raise ValueError(f"OFFSET_HEALTH.PERIOD is {period}; expected iterations, or 0 for off")
        self.period = period
        self.zero_after = zero_after
        self.min_conv, self.min_roi = min_conv, min_roi
        self.max_conv, self.max_roi, self.max_outside = max_conv, max_roi, max_outside
        parallel = isinstance(model, DistributedDataParallel)
        self._layers = deformable_layers(model.module if parallel else model)
        self._calls = {}
        self._told = set()

    @classmethod
    def from_config(cls, cfg, model):
        return {"model": model} | {key.lower(): value for key, value in cfg.OFFSET_HEALTH.items()}

    def before_step(self):
        done = self.trainer.iter + 1
        if self.period and (done % self.period == 0 or done == self.trainer.max_iter):
            self._calls = {name: [] for name in self._layers}
            for name, layer in self._layers.items():
                _record_predictions(layer, self._calls[name])

    @torch.no_grad()
    def after_step(self):
        if not self._calls:
            return
        stuck, fled = [], []
        for name, calls in self._calls.items():
            layer = self._layers[name]
            del layer.predict_offsets  # the recording one of this instance
            samples = [s for s in (_samples(layer, *call) for call in calls) if s.length.numel()]
            if not samples:
                continue
            health = _summary(samples)
            for statistic in STATISTICS:
                self.trainer.storage.put_scalar(
                    f"offsets/{name}/{statistic}", getattr(health, statistic), smoothing_hint=False
                )
            if self._is_stuck(layer, health) and (name, "stuck") not in self._told:
                stuck.append((name, layer, health))
            if self._runs_away(layer, health) and (name, "fled") not in self._told:
                fled.append((name, layer, health))
        self._calls = {}
        self._tell("stuck", stuck, STUCK)
        self._tell("fled", fled, FLED)

    def _is_stuck(self, layer, health):
        least = self.min_conv if isinstance(layer, DeformConv2d) else self.min_roi
        done = self.trainer.iter + 1
        return health.p99 < least and done >= min(self.zero_after, self.trainer.max_iter)

    def _runs_away(self, layer, health):
        conv = isinstance(layer, DeformConv2d)
        most = self.max_conv * min(health.map_size) if conv else self.max_roi
        # A NaN is not below anything either.
        return not (
            health.p99 <= most and health.outside - health.fixed_outside <= self.max_outside
        )

    def _tell(self, kind, found, advice):
        if not found:
            return
        self._told |= {(name, kind) for name, _, _ in found}
        layers = "; ".join(_in_words(*entry) for entry in found)
        pattern = "|".join(sorted({_offset_parameters(layer) for _, layer, _ in found}))
        logging.getLogger(__name__).warning(
            advice.format(iteration=self.trainer.iter + 1, layers=layers, pattern=pattern)
        )


STUCK = (
    "Offsets are still at zero after {iteration} iterations, so these layers are plain ones: "
    "{layers}. Give them a higher learning rate, SOLVER.LR_MULTIPLIERS [['{pattern}', 10.0]], or "
    "train longer. Exactly 0 says that no update reaches them: look for a factor of 0, frozen "
    "parameters or a feature map that is zero"
)
FLED = (
    "Offsets run away at iteration {iteration}: {layers}. Lower their learning rate, "
    "SOLVER.LR_MULTIPLIERS [['{pattern}', 0.1]], or SOLVER.BASE_LR, warm up longer, clip gradients "
    "(SOLVER.CLIP_GRADIENTS), or bound the offsets of convolutions "
    "(MODEL.RESNETS.DEFORM_OFFSET_CLAMP, in cells)"
)


def deformable_layers(model) -> dict[str, torch.nn.Module]:
    """The layers of `model` that predict offsets, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (DeformConv2d, DeformRoIAlign, DeformRoIPool))
        or (isinstance(module, PSRoIPredictor) and module.offset_maps is not None)
    }


def _record_predictions(layer, calls: list) -> None:
    """Until `predict_offsets` is deleted from `layer`, note its arguments and offsets."""
    predict = layer.predict_offsets

    def predict_and_record(x, *args):
        prediction = predict(x, *args)
        if torch.is_grad_enabled():  # else a pass that only chooses RoIs (OHEM)
            offset = prediction[0] if isinstance(prediction, tuple) else prediction
            calls.append((offset.detach(), x.shape[-2:], *args))
        return prediction

    layer.predict_offsets = predict_and_record


@dataclass(frozen=True)
class _Samples:
    """length: of each offset (n,). outside, fixed_outside: share of samples, the latter of the
    fixed grid. map_size: (H, W)."""

    length: torch.Tensor
    outside: torch.Tensor
    fixed_outside: torch.Tensor
    map_size: tuple[int, int]


@dataclass(frozen=True)
class _Health:
    mean: float
    std: float
    p99: float
    outside: float
    fixed_outside: float
    map_size: tuple[int, int]


def _summary(samples) -> _Health:
    length = torch.cat([s.length for s in samples])
    weight = length.new_tensor([s.length.numel() / length.numel() for s in samples])
    spread = length[:: math.ceil(length.numel() / MAX_SORTED)]
    values = torch.stack(
        [
            length.mean(),
            length.std(correction=0),
            spread.quantile(0.99),
            torch.stack([s.outside for s in samples]) @ weight,
            torch.stack([s.fixed_outside for s in samples]) @ weight,
        ]
    )
    return _Health(*values.tolist(), map_size=tuple(samples[-1].map_size))


def _samples(layer, offset, map_size, rois=None, spatial_scale=None) -> _Samples:
    if isinstance(layer, DeformConv2d):
        return _conv_samples(layer, offset, map_size)
    if spatial_scale is None:
        spatial_scale = layer.spatial_scale
    return _roi_samples(layer, offset, map_size, rois, spatial_scale)


def _conv_samples(layer, offset, map_size):
    """offset: (N, G * taps * 2, H_out, W_out)."""
    kernel, stride, padding, dilation = (
        torch.tensor(pair)
        for pair in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    offset = offset.float().unflatten(1, (-1, int(kernel.prod()), 2))
    taps = torch.cartesian_prod(*map(torch.arange, kernel.tolist())) * dilation - padding
    units = torch.cartesian_prod(*map(torch.arange, offset.shape[-2:])) * stride
    grid = (taps[:, None] + units).transpose(1, 2).to(offset)  # (taps, 2, H_out * W_out)
    last = offset.new_tensor(map_size)[:, None] - 0.5

    def outside(points):
        return ((points < -0.5) | (points >= last)).any(dim=-2).float().mean()

    offset = offset.flatten(-2)
    length = offset.norm(dim=3).flatten()
    return _Samples(length, outside(grid + offset), outside(grid), map_size)


def _roi_samples(layer, offset, map_size, rois, spatial_scale):
    """offset: (R, classes * 2, k, k), rois: (R, 5). Corners of RoIs are not rounded here."""
    step = math.ceil(offset.numel() / MAX_ROI_VALUES) or 1
    shift = layer.gamma * offset[::step].float().unflatten(1, (-1, 2))
    x0, y0, x1, y1 = (spatial_scale * rois[::step, 1:].float()).unbind(1)
    # mmcv's pooling takes as many as a bin is large, at the centres of equal parts.
    centred = isinstance(layer, DeformRoIAlign)
    k, samples = layer.output_size, 4 if centred else layer.samples_per_part
    bins = torch.arange(k, device=rois.device) / k
    of_bin = (torch.arange(samples, device=rois.device) + 0.5 * centred) / (k * samples)

    def inside(low, high, bins, shift, size):
        """Share of the samples along one axis of each bin; they stand at (fraction of the RoI)."""
        fraction = (bins + shift)[..., None] + of_bin
        start, extent = low - 0.5, (high - low).clamp(min=0.1)
        points = start[:, None, None, None, None] + fraction * extent[:, None, None, None, None]
        return ((points >= -0.5) & (points <= size - 0.5)).float().mean(dim=-1)

    def outside(shift):
        rows = inside(y0, y1, bins[:, None], shift[:, :, 0], map_size[0])
        return 1 - (rows * inside(x0, x1, bins, shift[:, :, 1], map_size[1])).mean()

    length = shift.norm(dim=2).flatten()
    return _Samples(length, outside(shift), outside(torch.zeros_like(shift[:, :1])), map_size)


def _offset_parameters(layer) -> str:
    """What the names of the parameters that predict its offsets hold."""
    if isinstance(layer, DeformConv2d):
        return "conv_offset"
    return "offset_maps" if isinstance(layer, PSRoIPredictor) else "offset_fc"


def _in_words(name, layer, health) -> str:
    unit = "cells" if isinstance(layer, DeformConv2d) else "RoI sizes"
    height, width = health.map_size
    return (
        f"{name} (99th percentile {health.p99:.4g} {unit}, {health.outside:.0%} of samples outside "
        f"its map of {height}x{width}, {health.fixed_outside:.0%} without offsets)"
    )
