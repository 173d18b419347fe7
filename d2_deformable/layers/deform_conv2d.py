"""Deformable convolution that predicts its own offsets (paper sec. 2.1, figure 2)."""

from collections.abc import Callable

import torch
from torch import nn

from ..ops import BORDERS, deform_conv2d
from ..ops._autocast import without_autocast
from ..ops._checks import check_tensors
from .offset_prediction import OffsetOutput, OffsetPrediction
from .zero import ZeroConv2d

# Where a plain convolution's forward is defined. Detectron2's then applies norm and activation.
OF_TORCH, OF_DETECTRON2 = "torch.nn.modules.conv", "detectron2.layers.wrappers"


class DeformConv2d(nn.Conv2d):
    """A convolution whose sampling grid is moved by offsets predicted from its own input.

    An ordinary convolution `conv_offset` of the same kernel size and stride reads the input and
    predicts a (dy, dx) pair for every kernel tap and offset group, in feature-map pixels. It
    starts at zero, so at first the layer equals the plain convolution it replaces. Weight, bias,
    norm and activation keep the meaning and the parameter names of `detectron2.layers.Conv2d`.

    Shapes: input (N, in_channels, H, W) -> output (N, out_channels, H_out, W_out).

    Args:
        offset_groups: input channels are split into this many groups with offsets of their own
            (1 in the paper, 4 in its released detectors). Must divide `in_channels`.
        offset_dilation: dilation of `conv_offset`; 0 uses that of this convolution.
        modulated: also predict a mask per tap (Deformable ConvNets v2). The mask is
            2 * sigmoid(prediction), as in its authors' example, so it starts at one.
        max_offset: clamp offsets to +- this many pixels; 0 does not clamp, like the paper. The
            gradient of a clamped offset is zero.
        border: "zero" (paper eq. 3 and 4) or "legacy" (the 2017 operator); see
            `d2_deformable.ops.deform_conv2d`.
        norm, activation: applied to the output in this order, as in `detectron2.layers.Conv2d`; a
            module and a function, or None.
        kwargs: of `torch.nn.Conv2d`: stride, padding, dilation, groups, bias, ...

    Example:
        >>> conv = nn.Conv2d(8, 4, 3, padding=1)
        >>> layer = DeformConv2d.from_conv(conv)
        >>> x = torch.randn(1, 8, 10, 10)
        >>> torch.allclose(layer(x), conv(x), atol=1e-4)  # offsets start at zero
        True
        >>> layer.predict_offsets(x).offset.shape
        torch.Size([1, 18, 10, 10])

    Raises:
        ValueError: an argument is invalid, or the offset map would not have the output's size.
    """

    # Narrower than in torch, where they may have any length, and padding may be a string.
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_unit = "cells"
    offset_parameters = "conv_offset"

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        *,
        offset_groups: int = 1,
        offset_dilation: int = 0,
        modulated: bool = False,
        max_offset: float = 0.0,
        border: str = "zero",
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.norm = norm
        self.activation = activation
        if border not in BORDERS:
            raise ValueError(
                f"border is {border!r}; expected one of {', '.join(BORDERS)} (in a YAML: "
                "MODEL.RESNETS.DEFORM_BORDER)"
            )
        if not max_offset >= 0:
            raise ValueError(
                f"max_offset is {max_offset}; expected 0 for free offsets, or positive pixels (in "
                "a YAML: MODEL.RESNETS.DEFORM_OFFSET_CLAMP, or clamp in MODEL.DEFORM_MODULES)"
            )
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                f"offset_groups={offset_groups} does not divide the {in_channels} input channels; "
                "expected a divisor of them (in a YAML: MODEL.RESNETS.DEFORM_NUM_GROUPS, or groups "
                "in MODEL.DEFORM_MODULES, for the channels of every deformable layer)"
            )
        if not isinstance(self.padding, tuple) or self.padding_mode != "zeros":
            raise ValueError(
                "DeformConv2d takes numeric zero padding, "
                f"got padding={self.padding!r}, padding_mode={self.padding_mode!r}"
            )
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.max_offset = max_offset
        self.border = border

        taps = self.kernel_size[0] * self.kernel_size[1]
        dilation = (offset_dilation, offset_dilation) if offset_dilation else self.dilation
        # The padding grows with the dilation, so that the offset map is as large as the output.
        growth = [
            (d_offset - d) * (k - 1)
            for d_offset, d, k in zip(dilation, self.dilation, self.kernel_size, strict=True)
        ]
        padding = self.padding[0] + growth[0] // 2, self.padding[1] + growth[1] // 2
        if any(g % 2 for g in growth) or min(padding) < 0:
            raise ValueError(
                f"offset_dilation={offset_dilation} gives another map size than kernel "
                f"{self.kernel_size}, padding {self.padding}, dilation {self.dilation}; leave it 0 "
                "(in a YAML: MODEL.RESNETS.DEFORM_OFFSET_DILATION)"
            )
        self.conv_offset = ZeroConv2d(
            in_channels,
            (3 if modulated else 2) * taps * offset_groups,
            self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=dilation,
        )
        self.offset_prediction = OffsetOutput()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **kwargs) -> "DeformConv2d":
        """Build the deformable twin of `conv`, which shares its parameters, norm and activation.

        Args:
            kwargs: offset_groups, offset_dilation, modulated, max_offset, border.

        Raises:
            ValueError: `conv` is not a plain two-dimensional convolution: it is another layer, its
                class computes something else, or its weight is itself computed.
        """
        _check_plain(conv)
        # The weight drawn here is replaced by that of `conv`.
        with torch.random.fork_rng(devices=[]):
            deform = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                padding_mode=conv.padding_mode,
                bias=conv.bias is not None,
                **_applied_after(conv),
                **kwargs,
            )
        deform.weight, deform.bias = conv.weight, conv.bias
        deform.conv_offset.to(conv.weight)
        return deform.train(conv.training)

    def predict_offsets(self, x: torch.Tensor) -> OffsetPrediction:
        """Predict offsets (N, offset_groups * 2 * taps, H_out, W_out), (dy, dx) interleaved per
        tap, and the mask (N, offset_groups * taps, H_out, W_out) or None.

        Under torch.autocast they are float32: bfloat16 would round an offset of 10 pixels to a
        multiple of 1/16.
        """
        check_tensors("DeformConv2d", x=x)
        with without_autocast(x):
            prediction = self.conv_offset(x.to(self.conv_offset.weight.dtype))
        offset, mask = prediction, None
        if self.modulated:
            taps = prediction.shape[1] // 3
            offset, mask = prediction.split([2 * taps, taps], dim=1)
            mask = 2 * mask.sigmoid()
        if self.max_offset:
            offset = offset.clamp(-self.max_offset, self.max_offset)
        return self.offset_prediction(offset, mask, x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset, mask = self.predict_offsets(x)
        x = deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
            border=self.border,
        )
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, offset_groups={self.offset_groups}, "
            f"modulated={self.modulated}, max_offset={self.max_offset}, border={self.border}"
        )


def _applied_after(conv) -> dict:
    """The norm and activation that a plain convolution applies to its output."""
    if conv.forward.__module__ == OF_DETECTRON2:
        return {"norm": conv.norm, "activation": conv.activation}
    return {}


def _check_plain(conv) -> None:
    """Refuse a layer that computes anything else than a plain two-dimensional convolution."""
    expected = "from_conv takes a plain torch.nn.Conv2d (Detectron2's Conv2d is one); got a "
    if not isinstance(conv, nn.Conv2d) or isinstance(conv, DeformConv2d):
        raise ValueError(expected + type(conv).__name__)
    inner = getattr(conv, "_conv_forward", conv.forward)
    if conv.forward.__module__ not in (OF_TORCH, OF_DETECTRON2) or inner.__module__ != OF_TORCH:
        raise ValueError(f"{expected}{type(conv).__name__} with a forward of its own")
    if type(conv.weight) is not nn.Parameter:
        raise ValueError(
            f"{expected}{type(conv).__name__} whose weight is computed (weight or spectral "
            "normalisation) or not known yet (lazy modules)"
        )
