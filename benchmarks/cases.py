"""The timed layers and RoI poolings: shapes, fresh inputs and exact results.

Layers are those of the paper's networks on an image of 600 x 1000 pixels, and shapes that are hard
for kernels. All coordinates are exact in float32. No coordinate that an offset moves is an integer:
gradients are discontinuous there, and rounding would show as an error.
"""

import runpy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision

TESTS = Path(__file__).parents[1] / "tests"
PIXELS = (0, 2, 8)  # standard deviations of offsets


def between_integers(shape, std, device):
    """Draw normal numbers, rounded to odd multiples of 1/128."""
    return ((64 * std * torch.randn(shape, device=device)).round() + 0.5) / 64


@dataclass(frozen=True)
class Convolution:
    """One square deformable convolution with "same" padding; `out_channels` 0 means `channels`."""

    name: str
    channels: int
    size: tuple[int, int]
    images: int = 1
    out_channels: int = 0
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    offset_groups: int = 1
    modulated: bool = False
    channels_last: bool = False
    offset_stds: tuple = (2,)

    def geometry(self) -> dict:
        padding = self.dilation * (self.kernel - 1) // 2
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation}

    def leaves(self) -> list[str]:
        return ["input", "offset", "weight"] + ["mask"] * self.modulated

    def draw(self, std, device, dtype) -> dict:
        """Draw the tensors of one call.

        They are input (N, C, H, W), offset (N, 2*G*taps, H_out, W_out), weight
        (C_out, C/groups, k, k), mask (N, G*taps, H_out, W_out) and grad, the gradient of the
        output.
        """
        like = {"dtype": dtype, "device": device}
        out = [(side - 1) // self.stride + 1 for side in self.size]
        out_channels = self.out_channels or self.channels
        taps = self.offset_groups * self.kernel**2
        weight = (out_channels, self.channels // self.groups, self.kernel, self.kernel)
        offset = between_integers((self.images, 2 * taps, *out), std, device).to(dtype)
        tensors = {
            "input": torch.randn(self.images, self.channels, *self.size, **like),
            "offset": offset if std else torch.zeros_like(offset),
            "weight": torch.randn(weight, **like) / (weight[1] * self.kernel**2) ** 0.5,
            "grad": torch.randn(self.images, out_channels, *out, **like),
        }
        if self.modulated:
            tensors["mask"] = torch.rand(self.images, taps, *out, **like)
        if self.channels_last:
            for name in ("input", "weight", "grad"):
                tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        return tensors

    def checked(self) -> slice:
        """Images of the output that are compared with the reference."""
        return slice(None)

    def label(self, std) -> str:
        return f"{self.name}, offsets {std} px"

    def reference(self, tensors: dict):
        """Compute the expected output with torchvision's operator; tensors are float64."""
        named = {name: tensors[name] for name in self.leaves()}
        return torchvision.ops.deform_conv2d(**named, **self.geometry())

    def reduced(self) -> "Convolution":
        """The same case with small tensors, for a smoke test."""
        return replace(
            self,
            channels=self.channels // 8,
            out_channels=self.out_channels // 8,
            size=tuple(side // 5 for side in self.size),
            groups=max(1, self.groups // 8),
            offset_stds=self.offset_stds[-1:],
        )


@dataclass(frozen=True)
class Pooling:
    """RoI pooling into 7 x 7 bins.

    Every class has its own `channels`; if `position_sensitive`, so has every bin.
    """

    name: str
    operator: str
    classes: int = 1
    channels: int = 1
    position_sensitive: bool = True
    images: int = 1
    rois: int = 300
    size: tuple[int, int] = (38, 63)
    bins: int = 7
    offset_stds: tuple = (0, 1)

    def leaves(self) -> list[str]:
        return ["input"] + ["offset"] * (self.operator == "deform_roi_pool")

    def geometry(self) -> dict:
        arguments = {"output_size": self.bins, "spatial_scale": 1 / 16}
        if self.operator == "deform_roi_pool":
            group_size = self.bins if self.position_sensitive else 1
            # gamma is 0.1 in the paper; 1/8 keeps coordinates exact.
            arguments |= {"group_size": group_size, "samples_per_part": 4, "gamma": 1 / 8}
        return arguments

    def draw(self, std, device, dtype) -> dict:
        """Draw the tensors of one call.

        They are input (N, C, H, W), rois (R, 5), offset (R, 2*classes, bins, bins) in eighths of a
        RoI's sides, and grad, the gradient of the output.
        """
        like = {"dtype": dtype, "device": device}
        bins = (self.bins, self.bins)
        sides = self.bins * (2 * torch.randint(2, 21, (self.rois, 2), device=device) + 1)
        limit = torch.tensor(self.size[::-1], device=device) * 16
        corner = (torch.rand(self.rois, 2, device=device) * 0.8 * limit).floor()
        index = torch.arange(self.rois, device=device)[:, None] % self.images
        out_channels = self.classes * self.channels
        channels = out_channels * (self.bins**2 if self.position_sensitive else 1)
        tensors = {
            "input": torch.randn(self.images, channels, *self.size, **like),
            "rois": torch.cat([index, corner, corner + sides], dim=1).float(),
            "grad": torch.randn(self.rois, out_channels, *bins, **like),
        }
        if "offset" in self.leaves():
            offset = between_integers((self.rois, 2 * self.classes, *bins), std, device)
            tensors["offset"] = offset.to(dtype)
        return tensors

    def checked(self) -> list[int]:
        """RoIs that are compared with the reference; only a few, since it is slow."""
        return [0, self.rois // 2, self.rois - 1]

    def label(self, std) -> str:
        if "offset" not in self.leaves():
            return self.name
        return f"{self.name}, offsets {std}/8 RoI" if std else f"{self.name}, offsets 0"

    def reference(self, tensors: dict):
        """Compute the expected output with the tests' reference; tensors are float64.

        It is zero except for the RoIs in `checked`.
        """
        chosen = self.checked()
        arguments = [tensors["input"], tensors["rois"][chosen]]
        if "offset" in tensors:
            arguments.append(tensors["offset"][chosen])
        function = runpy.run_path(str(TESTS / "reference.py"))[self.operator]
        output = torch.zeros_like(tensors["grad"])
        output[chosen] = function(*arguments, **self.geometry())
        return output

    def reduced(self) -> "Pooling":
        """The same case with small tensors, for a smoke test."""
        return replace(self, classes=min(2, self.classes), channels=min(8, self.channels), rois=4)


RES5 = Convolution("res5 512ch 38x63", 512, (38, 63), dilation=2, offset_stds=PIXELS)
RES4 = Convolution("res4 256ch 38x63", 256, (38, 63), offset_stds=PIXELS)
RES3 = Convolution("res3 128ch 75x125", 128, (75, 125), offset_stds=PIXELS)
SMALL = Convolution("small 64ch 56x56", 64, (56, 56), offset_stds=PIXELS)


def variant(case: Convolution, name: str, **changes) -> Convolution:
    return replace(case, name=f"{case.name} {name}", **{"offset_stds": (2,), **changes})


CONVOLUTIONS = [
    RES5,
    variant(RES5, "G=4", offset_groups=4, offset_stds=PIXELS),
    variant(RES5, "G=4 mask", offset_groups=4, modulated=True),
    RES4,
    RES3,
    SMALL,
    variant(RES3, "groups=32", groups=32),
    variant(RES3, "depthwise", groups=128),
    variant(RES5, "N=2", images=2),
    variant(RES4, "N=2 mask", images=2, modulated=True),
    variant(RES4, "N=8", images=8),
    variant(RES3, "stride 2", stride=2),
    variant(SMALL, "5x5", kernel=5),
    Convolution("odd 66 to 30ch 45x59 N=3", 66, (45, 59), images=3, out_channels=30),
    variant(RES4, "channels_last", channels_last=True),
]
CUDA_CONVOLUTION = variant(RES5, "N=8", images=8)  # minutes on a CPU

POOLINGS = [
    Pooling("deform PS-RoI pool 21 classes", "deform_roi_pool", classes=21),
    Pooling("deform PS-RoI pool 81 classes", "deform_roi_pool", classes=81),
    Pooling("deform RoI pool 256ch", "deform_roi_pool", channels=256, position_sensitive=False),
    Pooling("deform RoI pool 1024ch", "deform_roi_pool", channels=1024, position_sensitive=False),
    Pooling("PS-RoI pool 21 classes", "ps_roi_pool", classes=21, offset_stds=(0,)),
    Pooling("PS-RoI pool 81 classes", "ps_roi_pool", classes=81, offset_stds=(0,)),
]
