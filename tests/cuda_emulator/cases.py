"""Tiny calls of every kernel, compared with the reference.

check(program, kernel, dtype) launches the kernel on its own grid and on others, and compares
everything that it wrote. In the expected results, NaN marks places that must not be written.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import reference
from cuda_emulator import emulator

TOLERANCES = {  # absolute and relative; for half precision, one unit in the last digit
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}
# Bytes of shared memory per block: all that sm_90 has; less than one plane of a RoI operator.
SHARED, NO_SHARED = 227 << 10, 100
PROCESSORS = 2  # so few that RoIs are not split among blocks; some cases have more
BORDERS = ("zero", "legacy")
# Values that do not fit in a 64-bit integer, or not in a 32-bit one.
WILD = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e19, -1e19, 3e9, -3e9]


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type of coordinates and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_close(actual, expected):
    """actual: (SEEDS, *shape), expected: (*shape)"""
    for tensor, value in zip(actual, expected):
        tolerance = TOLERANCES[tensor.dtype]
        value = value.to(tensor.dtype).expand_as(tensor)
        torch.testing.assert_close(tensor, value, rtol=tolerance, atol=tolerance, equal_nan=True)


def random_rois(rois, images, dtype):
    """(R, 5); some RoIs reach beyond a feature map of about 10 x 10 pixels at scale 1/4."""
    corner = torch.rand(rois, 2, dtype=dtype) * 40 - 6
    index = torch.randint(images, (rois, 1))
    return torch.cat([index, corner, corner + torch.rand(rois, 2, dtype=dtype) * 30], dim=1)


def make_rois(case, dtype):
    """(R, 5) RoIs for the kernel, and RoIs for the reference that must give the same results."""
    equivalent = random_rois(case.rois, case.images, dtype)
    given = equivalent.clone()
    if case.image_index is not None:
        given[0, 0] = case.image_index
    if case.wild:
        nan, inf, far = math.nan, math.inf, [1e4, 1e4, 1e4, 1e4]
        pairs = [
            ([nan, nan, nan, nan], far),
            ([nan, 0.0, 9.0, 9.0], far),
            ([-inf, -inf, inf, inf], far),
            ([inf, inf, inf, inf], far),
            ([1e19, -1e19, 3e9, 3e9], far),
            ([0.0, 0.0, nan, nan], [0.0, 0.0, 0.0, 0.0]),
            ([0.0, 0.0, 1e30, 1e30], [0.0, 0.0, 1e30, 1e30]),
        ]
        index = torch.randint(case.images, (len(pairs), 1))
        wild = [torch.cat([index, torch.tensor(b, dtype=dtype)], dim=1) for b in zip(*pairs)]
        if getattr(case, "align", False):  # of which the reference takes any
            wild[1] = wild[0]
        given, equivalent = torch.cat([given, wild[0]]), torch.cat([equivalent, wild[1]])
    return given, equivalent


def gradients(total, leaves):
    """Gradients of `total`, or zeros if it does not depend on the leaves."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves)


def some_gradients(shape, dtype):
    """(R, Ctop, bins_h, bins_w); some are zero, which kernels skip."""
    return torch.randn(shape, dtype=dtype) * (torch.rand(shape) > 0.2)


@dataclass(frozen=True)
class DeformConv2d:
    """The sides of input and output and the number of taps all differ.

    An offset group has 24 channels. In half precision these are three packs, which leave one of
    four lanes idle; in float32 the number of packs is ragged. Weight groups of 16 channels cut the
    offset groups.
    """

    kernels = ("columns", "gradients", "gradients_of_points", "owned_input_gradient")

    images: int = 2
    channels: int = 48
    size: tuple = (7, 3)
    kernel: tuple = (3, 2)
    stride: tuple = (2, 1)
    padding: tuple = (1, 2)
    dilation: tuple = (1, 2)
    groups: int = 3
    offset_groups: int = 2
    mask: bool = True
    border: str = "zero"
    rows: tuple | None = None  # first, count; None: all
    wild: bool = False  # some offsets are NaN, infinite or huge

    def packed(self, dtype):
        """Whether 16 bytes divide each group's channels."""
        parts = self.channels // self.groups, self.channels // self.offset_groups
        return all(part * dtype.itemsize % 16 == 0 for part in parts)

    def check(self, program, kernel, dtype):
        taps, sums = math.prod(self.kernel), sum_type(dtype)
        image = torch.randn(self.images, self.channels, *self.size, dtype=dtype)
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        planes = torch.zeros(1, 1, *self.size), torch.zeros(1, 1, *self.kernel)
        out_size = F.conv2d(*planes, **geometry).shape[2:]
        # Offsets of about two pixels, not near integers, where gradients jump.
        offset_shape = (self.images, self.offset_groups * taps * 2, *out_size)
        offset = (2 * torch.randn(offset_shape, dtype=sums)).round()
        offset += 0.1 + 0.8 * torch.rand(offset_shape, dtype=sums)
        mask_shape = (self.images, self.offset_groups * taps, *out_size)
        mask = torch.rand(mask_shape, dtype=sums) if self.mask else None
        given = offset.clone()
        if self.wild:
            places = torch.randperm(offset.numel())[: 10 * len(WILD)]
            given.view(-1)[places] = torch.tensor(WILD, dtype=sums).repeat(10)
            offset = torch.where(given == offset, offset, 1e4)  # far outside

        # Columns are the output of a convolution that copies each channel of each tap.
        leaves = [image.to(sums), offset] + ([mask] if self.mask else [])
        for leaf in leaves:
            leaf.requires_grad_()
        copies = torch.eye(self.channels * taps, dtype=sums).view(-1, self.channels, *self.kernel)
        output = reference.deform_conv2d(
            *leaves[:2], copies, mask=mask, border=self.border, **geometry
        )
        all_rows = self.images * math.prod(out_size)
        first, count = self.rows or (0, all_rows)
        in_range = slice(first, first + count)
        columns = output.permute(0, 2, 3, 1)
        columns = columns.reshape(all_rows, self.groups, self.channels // self.groups, taps)
        columns = columns[in_range].transpose(2, 3)
        grad_columns = torch.randn(columns.shape).to(dtype)
        arguments = [
            *(self.packed(dtype), self.images, self.channels, *self.size, self.channels),
            *(*out_size, *self.kernel, *self.stride, *self.padding, *self.dilation),
            *(self.groups, self.offset_groups, BORDERS.index(self.border), first, count),
            *(image.permute(0, 2, 3, 1), given, mask, grad_columns),
        ]

        grads = gradients((columns * grad_columns).sum(), leaves)
        row_written = torch.zeros(all_rows, dtype=torch.bool)
        row_written[in_range] = True
        row_written = row_written.view(self.images, 1, *out_size)
        grads_of_points = [torch.where(row_written, grad, math.nan) for grad in grads[1:]]
        if not self.mask:
            grads_of_points.append(torch.empty(0))
        grad_input = grads[0].permute(0, 2, 3, 1)
        expected = {
            "columns": [columns],
            "gradients": [columns, *grads_of_points, grad_input],
            "gradients_of_points": [columns, *grads_of_points, torch.zeros_like(grad_input)],
            "owned_input_gradient": [grad_input],
        }[kernel]
        results = [(t.shape, dtype if t is columns else sums) for t in expected]
        actual = emulator.run(program, kernel, dtype, arguments, results)
        assert_close(actual, expected)
        if kernel == "owned_input_gradient":  # sums in an order that threads do not change
            assert torch.equal(actual[0], actual[0][:1].expand_as(actual[0]))


@dataclass(frozen=True)
class DeformRoiPool:
    """The sides of map, bins and parts all differ; some groups have more bins than others."""

    kernels = ("forward", "input_gradient", "input_gradient_in_order", "offset_gradient")

    images: int = 2
    top_channels: int = 4
    size: tuple = (9, 7)
    rois: int = 5
    group_size: int = 2
    classes: int = 2
    parts: tuple | None = (2, 4)  # None: no offset
    bins: tuple = (5, 3)
    samples: int = 3
    scale: float = 0.26
    round_rois: bool = True
    shared: int = SHARED
    processors: int = PROCESSORS
    align: bool = False  # deform_roi_align; 0 samples: as many as a bin has pixels
    wild: bool = False  # some offsets and RoIs are NaN, infinite or huge
    image_index: float | None = None  # of the first RoI, for the kernel

    def check(self, program, kernel, dtype):
        sums, groups = sum_type(dtype), self.group_size**2
        image = torch.randn(self.images, self.top_channels * groups, *self.size, dtype=dtype)
        given_rois, rois = make_rois(self, sums)
        offset = None
        if self.parts:
            offset = torch.randn(len(rois), 2 * self.classes, *self.parts, dtype=sums)
            if self.wild:
                places = torch.randperm(offset.numel())[: len(WILD)]
                offset.view(-1)[places] = torch.tensor(WILD, dtype=sums)
        gamma = 0.3
        leaves = [image.to(sums)] + ([offset] if self.parts else [])
        for leaf in leaves:
            leaf.requires_grad_()
        pool = {"output_size": self.bins, "spatial_scale": self.scale, "gamma": gamma}
        if self.align:
            output = reference.deform_roi_align(
                leaves[0], rois, offset, sampling_ratio=self.samples, **pool
            )
        else:
            output = reference.deform_roi_pool(
                leaves[0],
                rois,
                offset,
                group_size=self.group_size,
                samples_per_part=self.samples,
                round_rois=self.round_rois,
                **pool,
            )
        grad_output = some_gradients(output.shape, dtype)
        if self.wild:  # as a loss has them for bins of NaN; bins that read nothing ignore them
            empty = (output.isnan() | (output == 0)).all(1, keepdim=True)
            grad_output = torch.where(empty, math.nan, grad_output)
        arguments = [
            self.align,
            *(self.images, self.top_channels, *self.size, self.group_size, len(rois), *self.bins),
            *(self.classes, *(self.parts or (1, 1)), self.samples, self.scale, gamma),
            *(self.round_rois, self.processors, self.shared),
            *(image, given_rois, offset, grad_output),
        ]
        if kernel == "forward":
            expected = output
        else:
            leaf = leaves[1] if kernel == "offset_gradient" else leaves[0]
            (expected,) = gradients((output * grad_output).sum(), [leaf])
        results = [(expected.shape, sums if kernel == "offset_gradient" else dtype)]
        assert_close(emulator.run(program, kernel, dtype, arguments, results), [expected])


def deform_roi_align(bins=(5, 3), offset=True, **arguments) -> DeformRoiPool:
    """A case whose map is smaller than many bins' samples."""
    parts = bins if offset else None
    own = {"group_size": 1, "classes": 1, "round_rois": False, "align": True}
    return DeformRoiPool(bins=bins, parts=parts, **own, **arguments)


@dataclass(frozen=True)
class PsRoiPool:
    """The sides of map and bins all differ."""

    kernels = ("forward", "input_gradient", "input_gradient_in_order")

    images: int = 2
    top_channels: int = 3
    size: tuple = (9, 7)
    rois: int = 5
    bins: tuple = (4, 3)
    scale: float = 0.26
    round_rois: bool = True
    shared: int = SHARED
    processors: int = PROCESSORS
    wild: bool = False  # some RoIs are NaN, infinite or huge
    image_index: float | None = None  # of the first RoI, for the kernel

    def check(self, program, kernel, dtype):
        sums, bins = sum_type(dtype), math.prod(self.bins)
        image = torch.randn(self.images, self.top_channels * bins, *self.size, dtype=dtype)
        given_rois, rois = make_rois(self, sums)
        leaf = image.to(sums).requires_grad_()
        output = reference.ps_roi_pool(
            leaf,
            rois,
            output_size=self.bins,
            spatial_scale=self.scale,
            round_rois=self.round_rois,
        )
        grad_output = some_gradients(output.shape, dtype)
        arguments = [
            *(self.images, self.top_channels, *self.size, len(rois), *self.bins),
            *(self.scale, self.round_rois, self.processors, self.shared),
            *(image, given_rois, grad_output),
        ]
        expected = output
        if kernel != "forward":
            (expected,) = gradients((output * grad_output).sum(), [leaf])
        results = [(expected.shape, dtype)]
        assert_close(emulator.run(program, kernel, dtype, arguments, results), [expected])


CASES = {
    "deform_conv2d": {
        "groups that cut offset groups": DeformConv2d(),
        "legacy border": DeformConv2d(border="legacy", groups=1),
        "no mask": DeformConv2d(mask=False, groups=1, offset_groups=1),
        "channels one by one": DeformConv2d(channels=30),
        "as many lanes as there are": DeformConv2d(
            1, 141, (3, 2), (1, 2), (1, 1), (0, 0), (1, 1), groups=1, offset_groups=1
        ),
        "depthwise": DeformConv2d(channels=12, groups=12, offset_groups=3),
        "one channel": DeformConv2d(1, 1, (3, 2), (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
        "rows of two images, part of a warp": DeformConv2d(rows=(7, 21)),
        "rows of three images": DeformConv2d(images=3, channels=8, groups=1, rows=(15, 30)),
        "last rows": DeformConv2d(rows=(34, 6), border="legacy", mask=False),
        "no images": DeformConv2d(images=0),
        "wild offsets": DeformConv2d(wild=True),
        "wild offsets, legacy border": DeformConv2d(wild=True, border="legacy"),
    },
    "deform_roi_pool": {
        "groups and classes": DeformRoiPool(),
        "exact RoIs": DeformRoiPool(round_rois=False),
        "no offset": DeformRoiPool(classes=1, parts=None, samples=4),
        "more parts and groups than bins": DeformRoiPool(parts=(5, 3), group_size=3, bins=(2, 1)),
        "three lanes of channels": DeformRoiPool(
            top_channels=3, classes=1, group_size=1, parts=(3, 3), bins=(3, 3), rois=3
        ),
        "one channel per class": DeformRoiPool(top_channels=3, classes=3, samples=1),
        "two windows of columns": DeformRoiPool(top_channels=2, samples=6, images=1),
        "RoIs split among blocks": DeformRoiPool(
            images=1, top_channels=2, group_size=1, rois=40, samples=2, processors=132
        ),
        "wide map": DeformRoiPool(
            1, 2, (2, 70), group_size=1, parts=(1, 1), bins=(1, 2), scale=2.03
        ),
        "planes in place": DeformRoiPool(samples=4, shared=NO_SHARED),
        "no RoIs": DeformRoiPool(rois=0),
        "wild coordinates": DeformRoiPool(wild=True, round_rois=False),
        "wild coordinates, rounded": DeformRoiPool(wild=True, group_size=1),
        "align": deform_roi_align(samples=0),
        "align, two large bins": deform_roi_align((2, 1), samples=0, scale=0.8, rois=3),
        "align, six samples": deform_roi_align(samples=6, images=1, top_channels=2),
        "align, no offset": deform_roi_align(offset=False, samples=0),
        "align, planes in place": deform_roi_align(samples=0, shared=NO_SHARED, top_channels=1),
        "align, wild coordinates": deform_roi_align(samples=2, wild=True),
    },
    "ps_roi_pool": {
        "rounded RoIs": PsRoiPool(),
        "exact RoIs": PsRoiPool(round_rois=False),
        "one bin": PsRoiPool(1, 1, (3, 2), 4, (1, 1)),
        "many RoIs": PsRoiPool(top_channels=2, rois=70, bins=(1, 2), size=(4, 5), processors=132),
        "wide map": PsRoiPool(1, 1, (2, 70), bins=(1, 2), scale=2.03),
        "planes in place": PsRoiPool(shared=NO_SHARED),
        "no RoIs": PsRoiPool(rois=0),
        "wild coordinates": PsRoiPool(wild=True, round_rois=False),
        "wild coordinates, rounded": PsRoiPool(wild=True),
    },
}


def calls(operator: str):
    """(name of the case, case, kernel) for every kernel of one operator."""
    for name, case in CASES[operator].items():
        for kernel in case.kernels:
            if kernel != "offset_gradient" or case.parts:
                yield name, case, kernel
