"""Monitoring during training: do the offsets of deformable layers learn, stay at zero or run away?

Users of the released code met both failures: offsets that never leave zero, so that the network
stays a plain one, and offsets of hundreds of cells, which sample nothing but zeros.
"""

import logging
import math
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.engine import HookBase
from torch.nn.parallel import DistributedDataParallel

from ..layers import OffsetOutput
from ..ops import geometry

STATISTICS = ("mean", "std", "p99", "outside")
MAX_SORTED = 2**16  # values that the percentile is computed from, evenly spread over all
MAX_ROI_VALUES = 2**18  # shifts that are read, from evenly spread RoIs


class OffsetHealth(HookBase):
    """Logs statistics of every deformable layer's offsets, and warns when they look wrong.

    Every `period` iterations it writes the scalars `offsets/<layer>/...` to TensorBoard and
    metrics.json. They describe the offsets that the training step itself predicts: those of all its
    forward passes with gradients, under DDP those of the main process.

    mean, std, p99: mean, standard deviation and 99th percentile of the length of (dy, dx). The unit
        is a cell of the feature map for `DeformConv2d`, and the RoI's height and width, including
        gamma, for RoI layers. A convolution that runs on several maps, such as that of an RPN on a
        pyramid, has one value for all of them.
    outside: share of samples whose nearest cell is not on the map, so that they read zero (or, in
        RoI pooling, do not count). The fixed grid of a padded convolution also has such samples.

    `in_words` is the last measurement as a short text, for people; "" before the first one.

    List it before the writers of its period, so that they write its scalars.

    Args:
        model: contains the layers; without any, this hook does nothing.
        period: iterations; 0 turns it off.
        zero_after: iterations at the full learning rate after which offsets that stay at zero are
            reported. A shorter training never reports them: it is too short to tell.
        warmup: iterations before that, in which the learning rate rises.
        min_conv, min_roi: a layer whose p99 is smaller counts as staying at zero.
        max_conv, max_roi: a convolution whose p99 is larger than `max_conv` times the shorter side
            of its map counts as running away, as does a RoI layer whose p99 is larger than
            `max_roi`.
        max_outside: a layer whose offsets moved more than this share of samples out of its map
            counts as running away, too.

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
        warmup: int = 0,
        min_conv: float = 0.01,
        min_roi: float = 0.001,
        max_conv: float = 0.5,
        max_roi: float = 1.0,
        max_outside: float = 0.25,
    ):
        check_period(period)
        self.period = period
        self.zero_after, self.warmup = zero_after, warmup
        self.min_conv, self.min_roi = min_conv, min_roi
        self.max_conv, self.max_roi, self.max_outside = max_conv, max_roi, max_outside
        parallel = isinstance(model, DistributedDataParallel)
        self._layers = deformable_layers(model.module if parallel else model)
        self._calls, self._hooks = {}, []
        self._warned = set()
        self.in_words = ""

    @classmethod
    def from_config(cls, cfg, model):
        thresholds = {key.lower(): value for key, value in cfg.OFFSET_HEALTH.items()}
        return {"model": model, "warmup": cfg.SOLVER.WARMUP_ITERS, **thresholds}

    def before_step(self):
        done = self.trainer.iter + 1
        if self.period and (done % self.period == 0 or done == self.trainer.max_iter):
            self._calls = {name: [] for name in self._layers}
            self._hooks = [
                layer.offset_prediction.register_forward_hook(_recorder(self._calls[name]))
                for name, layer in self._layers.items()
            ]

    @torch.no_grad()
    def after_step(self):
        if not self._calls:
            return
        for hook in self._hooks:
            hook.remove()
        at_zero, running_away, measured = [], [], []
        for name, calls in self._calls.items():
            layer = self._layers[name]
            samples = [s for s in (_samples(layer, *call) for call in calls) if s.length.numel()]
            if not samples:
                continue
            health = _summary(samples)
            measured.append((layer, health))
            for statistic in STATISTICS:
                self.trainer.storage.put_scalar(
                    f"offsets/{name}/{statistic}", getattr(health, statistic), smoothing_hint=False
                )
            if self._stays_at_zero(layer, health) and (name, ZERO_ADVICE) not in self._warned:
                at_zero.append((name, layer, health))
            if self._runs_away(layer, health) and (name, RUNAWAY_ADVICE) not in self._warned:
                running_away.append((name, layer, health))
        self._calls = {}
        if measured:
            self.in_words = self._summarize(measured)
        self._warn(at_zero, ZERO_ADVICE)
        self._warn(running_away, RUNAWAY_ADVICE)

    def _is_small(self, layer, health):
        return health.p99 < (self.min_conv if layer.offset_unit == "cells" else self.min_roi)

    def _is_judged(self):
        return self.trainer.iter + 1 >= self.warmup + self.zero_after

    def _stays_at_zero(self, layer, health):
        return self._is_judged() and self._is_small(layer, health)

    def _runs_away(self, layer, health):
        in_cells = layer.offset_unit == "cells"
        most = self.max_conv * min(health.map_size) if in_cells else self.max_roi
        # Negated, so that NaN counts as running away.
        return not (
            health.p99 <= most and health.outside - health.fixed_outside <= self.max_outside
        )

    def _summarize(self, measured):
        """Say how the offsets of all layers are, with the largest p99 of each unit.

        Args:
            measured: (layer, health) of each layer.
        """
        away = sum(self._runs_away(*entry) for entry in measured)
        small = sum(self._is_small(*entry) for entry in measured)
        if away:
            state = f"running away in {away} of {len(measured)} layers"
        elif small:
            when = "at zero" if self._is_judged() else "still near zero"
            state = f"{when} in {small} of {len(measured)} layers"
        else:
            state = "healthy"
        largest = {}
        for layer, health in measured:
            values = (health.p99, largest.get(layer.offset_unit, 0.0))
            largest[layer.offset_unit] = max(values, key=lambda p99: (math.isnan(p99), p99))
        sizes = ", ".join(f"{p99:.2g} {unit}" for unit, p99 in largest.items())
        return f"{state}, p99 {sizes}"

    def _warn(self, found, advice):
        """Log `advice` with the (name, layer, health) of each layer in `found`."""
        if not found:
            return
        self._warned |= {(name, advice) for name, _, _ in found}
        layers = "; ".join(_in_words(*entry) for entry in found)
        pattern = "|".join(sorted({layer.offset_parameters for _, layer, _ in found}))
        logging.getLogger(__name__).warning(
            advice.format(iteration=self.trainer.iter + 1, layers=layers, pattern=pattern)
        )


ZERO_ADVICE = (
    "Offsets are still at zero after {iteration} iterations, so these layers act as plain ones: "
    "{layers}. Give them a higher learning rate, SOLVER.LR_MULTIPLIERS [['{pattern}', 10.0]], or "
    "train longer. Exactly 0 means that no update reaches them: look for a multiplier of 0, frozen "
    "parameters or a feature map that is zero"
)
RUNAWAY_ADVICE = (
    "Offsets run away at iteration {iteration}: {layers}. Lower their learning rate, "
    "SOLVER.LR_MULTIPLIERS [['{pattern}', 0.1]], or SOLVER.BASE_LR, warm up longer, clip gradients "
    "(SOLVER.CLIP_GRADIENTS), or bound the offsets of convolutions "
    "(MODEL.RESNETS.DEFORM_OFFSET_CLAMP, or clamp in MODEL.DEFORM_MODULES, in cells)"
)


def check_period(period: int) -> None:
    """Check OFFSET_HEALTH.PERIOD.

    Raises:
        ValueError: it is negative.
    """
    if period < 0:
        raise ValueError(f"OFFSET_HEALTH.PERIOD is {period}; expected iterations, or 0 for off")


def deformable_layers(model) -> dict[str, torch.nn.Module]:
    """The layers of `model` that predict offsets, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "offset_prediction", None), OffsetOutput)
    }


def _recorder(calls: list):
    """A forward hook for `OffsetOutput` that appends the offsets, map size and RoIs to `calls`."""

    def record(_, args, prediction):
        if torch.is_grad_enabled():  # otherwise it is a pass that only selects RoIs (OHEM)
            _, _, x, *rois = args
            calls.append((prediction.offset.detach(), x.shape[-2:], *rois))

    return record


@dataclass(frozen=True)
class _Samples:
    """Statistics of one forward pass.

    length: length of each offset, (n,).
    outside, fixed_outside: share of samples outside the map, with offsets and on the fixed grid.
    map_size: (H, W).
    """

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
    # A head that runs on several levels has most of its offsets on the largest one.
    largest = max((s.map_size for s in samples), key=lambda size: size[0] * size[1])
    return _Health(*values.tolist(), map_size=tuple(largest))


def _samples(layer, offset, map_size, *rois) -> _Samples:
    samples = _roi_samples if rois else _conv_samples
    return samples(layer, offset.float(), map_size, *rois)


def _conv_samples(layer, offset, map_size):
    """offset: (N, G * taps * 2, H_out, W_out)."""
    grid = geometry.tap_grid(
        offset.shape[-2:],
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        offset.device,
    )
    grid = torch.stack(torch.broadcast_tensors(*grid), dim=-1)  # (taps, H_out, W_out, 2)
    offset = offset.unflatten(1, (-1, len(grid), 2)).movedim(3, -1)

    def outside(points):
        return (~geometry.is_inside(points, map_size)).float().mean()

    return _Samples(
        offset.norm(dim=-1).flatten(), outside(grid + offset), outside(grid.float()), map_size
    )


def _roi_samples(layer, offset, map_size, rois, spatial_scale):
    """offset: (R, classes * 2, k, k), rois: (R, 5)."""
    step = math.ceil(offset.numel() / MAX_ROI_VALUES) or 1
    shift, rois = layer.gamma * offset[::step], rois[::step].float()
    k, (round_rois, min_size, samples, centred) = layer.output_size, layer.roi_sampling
    _, *box = geometry.roi_boxes(rois, spatial_scale, -0.5, round_rois, min_size)

    def outside(shift):
        inside = 1
        for corner, side, size in zip(
            geometry.bin_corners(*box, (k, k), shift), box[2:], map_size, strict=True
        ):
            points = geometry.samples_of_bins(corner, side / k, samples, centred)
            inside = inside * geometry.is_counted(points, size).float().mean(dim=-1)
        return 1 - inside.mean()

    length = shift.unflatten(1, (-1, 2)).norm(dim=2).flatten()
    return _Samples(length, outside(shift), outside(None), map_size)


def _in_words(name, layer, health) -> str:
    height, width = health.map_size
    return (
        f"{name} (99th percentile {health.p99:.4g} {layer.offset_unit}, "
        f"{health.outside:.0%} of samples outside its map of {height}x{width}, "
        f"{health.fixed_outside:.0%} without offsets)"
    )
