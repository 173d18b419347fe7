"""The gradient with respect to an offset where interpolation has a kink: at whole coordinates, and
where the border rules begin and end.

The row 1, 2, 4, 8 is read at one point. Between whole coordinates its slopes are 1, 2 and 4.
"""

import pytest
import torch
import torchvision
from ops.arguments import every_argument

from d2_deformable import ops
from d2_deformable.ops import _composite as composite

ROW = (1.0, 2.0, 4.0, 8.0)
PLACES = (-1.5, -1.0, -0.75, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 3.75, 4.0, 4.5)
# The derivative on the right of each place, but for the marked ones.
SLOPES = {
    # 0 at exactly -1, as in the released operators: what is read on the right has the slope 1.
    "zero": (0, 0, 1, 1, 1, 1, 2, 4, 4, -8, -8, -8, 0, 0),
    # The last pixel is repeated from 3 on. The jumps at 0 and 4 have no slope.
    "legacy": (0, 0, 0, 0, 1, 1, 2, 4, 4, 0, 0, 0, 0, 0),
    # 0 at whole coordinates and beyond the outer pixels' centres, as in the released operator.
    "pool": (0, 0, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0),
    # 0 at 0 and beyond the outer pixels' centres.
    "align": (0, 0, 0, 0, 0, 1, 2, 4, 4, 0, 0, 0, 0, 0),
}


def call(rule, image, offset):
    """Function and arguments that read at the points (y, x), offset (1, 2, 1, 1)."""
    if rule in ("zero", "legacy"):
        channels, height, width = image.shape[1:]
        everywhere = offset.new_zeros(1, 2, height, width)
        everywhere[..., :1, :1] = offset
        weight = image.new_ones(1, channels, 1, 1)
        tensors = {"input": image, "offset": everywhere, "weight": weight}
        return ops.deform_conv2d, tensors | {"border": rule}
    # The first sample lies at 0, 0.
    start = 0.5 if rule == "pool" else 0.0
    rois = image.new_tensor([[0, start, start, start + 1, start + 1]])
    tensors = {"input": image, "rois": rois, "offset": offset}
    tensors |= {"output_size": 1, "spatial_scale": 1.0, "gamma": 1.0}
    if rule == "pool":
        return ops.deform_roi_pool, tensors | {"samples_per_part": 1, "round_rois": False}
    return ops.deform_roi_align, tensors | {"sampling_ratio": 1}


def slopes(run, rule, axis, channels, dtype, device):
    """The gradient with respect to the offset along the axis, at all places."""
    row = torch.tensor(ROW, dtype=dtype, device=device)
    shape = (1, channels, 4, 3) if axis == 0 else (1, channels, 3, 4)
    image = (row[:, None] if axis == 0 else row).expand(shape) / channels
    found = []
    for place in PLACES:
        offset = torch.tensor([1.0, 1.0], dtype=dtype, device=device)
        offset[axis] = place
        offset = offset.view(1, 2, 1, 1).requires_grad_()
        function, arguments = call(rule, image, offset)
        output = run(function, every_argument(function, **arguments))
        (gradient,) = torch.autograd.grad(output[..., 0, 0].sum(), offset)
        assert gradient[0, 1 - axis] == 0  # along this axis all values are equal
        found.append(gradient[0, axis].item())
    return tuple(found)


def kernels(function, arguments):
    return function(**arguments)


def composites(function, arguments):
    """The standard tensor operations, of which autograd takes the gradient."""
    return getattr(composite, function.__name__)(**arguments)


@pytest.mark.parametrize("channels", [1, 16])  # one channel per class and several have own kernels
@pytest.mark.parametrize("axis", [0, 1], ids=["y", "x"])
@pytest.mark.parametrize("rule", SLOPES)
def test_is_what_the_documentation_says(rule, axis, channels, device):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert slopes(kernels, rule, axis, channels, dtype, device) == SLOPES[rule]
    for dtype in (torch.float64, torch.float32):
        assert slopes(composites, rule, axis, channels, dtype, device) == SLOPES[rule]


@pytest.mark.parametrize("axis", [0, 1], ids=["y", "x"])
def test_torchvision_differs_at_minus_one_alone(axis, device):
    def theirs(function, arguments):
        tensors = {name: arguments[name] for name in ("input", "offset", "weight")}
        return torchvision.ops.deform_conv2d(**tensors)

    found = slopes(theirs, "zero", axis, 1, torch.float64, device)
    pairs = zip(PLACES, found, SLOPES["zero"], strict=True)
    assert [(place, slope) for place, slope, ours in pairs if slope != ours] == [(-1.0, 1.0)]
