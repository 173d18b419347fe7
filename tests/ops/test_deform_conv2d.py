"""deform_conv2d against the slow reference, torchvision, an ordinary convolution and itself."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch.library import opcheck

import reference
from d2_deformable.ops import deform_conv2d

FORWARD = torch.ops.d2_deformable.deform_conv2d.default
BACKWARD = torch.ops.d2_deformable.deform_conv2d_backward.default


@dataclass(frozen=True)
class Case:
    """One call; no two sizes are equal, so that none can be mistaken for another."""

    images: int = 3
    channels: int = 12
    size: tuple = (9, 7)
    out_channels: int = 6
    kernel: tuple = (3, 2)
    stride: tuple = (2, 1)
    padding: tuple = (1, 2)
    dilation: tuple = (1, 2)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True

    def geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def inputs(self, dtype=torch.float64, device="cpu", spread=2.0) -> dict:
        """Offsets of about `spread` pixels, at least 0.1 pixels away from integers."""
        like = {"dtype": dtype, "device": device}
        image = torch.randn(self.images, self.channels, *self.size, **like)
        weight = torch.randn(self.out_channels, self.channels // self.groups, *self.kernel, **like)
        plain = F.conv2d(image.cpu(), weight.cpu(), None, **self.geometry(), groups=self.groups)
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        offset_shape = (self.images, 2 * taps, *plain.shape[2:])
        offset = (spread * torch.randn(offset_shape, **like)).round()
        offset += 0.1 + 0.8 * torch.rand(offset_shape, **like)
        inputs = {"input": image, "offset": offset, "weight": weight}
        if self.bias:
            inputs["bias"] = torch.randn(self.out_channels, **like)
        if self.mask:
            inputs["mask"] = torch.rand(self.images, taps, *plain.shape[2:], **like)
        return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def values_and_gradients(function, inputs: dict, **arguments) -> list:
    output = function(**inputs, **arguments)
    weights = torch.cos(torch.arange(output.numel(), device=output.device)).to(output.dtype)
    total = (output * weights.view(output.shape)).sum()
    return [output, *torch.autograd.grad(total, list(inputs.values()))]


def backward_arguments(case: Case, inputs: dict, border="zero") -> tuple:
    inputs = {name: tensor.detach() for name, tensor in inputs.items()}
    tensors = (inputs["input"], inputs["offset"], inputs["weight"], inputs.get("mask"))
    output = deform_conv2d(**inputs, **case.geometry())
    grad = torch.randn_like(output)
    return (grad, *tensors, *map(list, case.geometry().values()), border)


CASES = [
    pytest.param(Case(), id="rectangles"),
    pytest.param(Case(mask=False, bias=False), id="plain"),
    pytest.param(Case(groups=3, offset_groups=2), id="groups that cut offset groups"),
    pytest.param(Case(groups=2, offset_groups=4, mask=False), id="4 offset groups"),
    pytest.param(Case(groups=12, out_channels=24, images=2), id="depthwise"),
    pytest.param(Case(kernel=(1, 1), padding=(0, 0), dilation=(1, 1)), id="1x1"),
    pytest.param(Case(size=(1, 2), kernel=(1, 2), stride=(1, 1)), id="one row"),
    pytest.param(Case(channels=130, images=1, out_channels=2), id="more than two channel blocks"),
]


@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case, border, device, assert_close):
    inputs = case.inputs(device=device)
    actual = values_and_gradients(deform_conv2d, inputs, **case.geometry(), border=border)
    expected = values_and_gradients(
        reference.deform_conv2d, inputs, **case.geometry(), border=border
    )
    assert_close(actual, expected)


def test_float32_equals_float64(device, assert_close):
    inputs = Case(groups=3, offset_groups=2).inputs(torch.float32, device)
    doubles = {name: tensor.detach().double() for name, tensor in inputs.items()}
    for tensor in doubles.values():
        tensor.requires_grad_()
    arguments = Case().geometry()
    actual = values_and_gradients(deform_conv2d, inputs, **arguments)
    expected = values_and_gradients(deform_conv2d, doubles, **arguments)
    assert all(tensor.dtype == torch.float32 for tensor in actual)
    assert_close(actual, [tensor.float() for tensor in expected])


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "modulated"])
@pytest.mark.parametrize("offset_groups", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(
    "geometry",
    [
        {"size": (8, 5), "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)},
        {"size": (11, 6), "kernel": (2, 4), "stride": (3, 2), "padding": (0, 3)},
        {"size": (9, 10), "kernel": (3, 3), "padding": (4, 2), "dilation": (4, 3)},
    ],
    ids=["3x3", "strided", "dilated"],
)
def test_equals_torchvision(geometry, groups, offset_groups, mask, device, assert_close):
    case = Case(groups=groups, offset_groups=offset_groups, mask=mask, **geometry)
    inputs = case.inputs(device=device)
    actual = values_and_gradients(deform_conv2d, inputs, **case.geometry())
    expected = values_and_gradients(torchvision.ops.deform_conv2d, inputs, **case.geometry())
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case(images=1),
        Case(images=65, size=(4, 5)),
        # Several column buffers, which end in the middle of an image; several channel blocks.
        Case(images=3, channels=130, size=(21, 23), kernel=(3, 3), stride=(1, 1), offset_groups=2),
    ],
    ids=["batch 1", "batch 65", "many columns"],
)
def test_batches_equal_torchvision(case, device, assert_close):
    inputs = case.inputs(device=device)
    actual = values_and_gradients(deform_conv2d, inputs, **case.geometry())
    expected = values_and_gradients(torchvision.ops.deform_conv2d, inputs, **case.geometry())
    assert_close(actual, expected)


def test_empty_batch(device):
    inputs = replace(Case(), images=0).inputs(device=device)
    output, *gradients = values_and_gradients(deform_conv2d, inputs, **Case().geometry())
    assert output.shape == (0, 6, 5, 9)
    for tensor, gradient in zip(inputs.values(), gradients):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("border", ["zero", "legacy"])
def test_gradcheck(border, device):
    case = Case(images=2, channels=4, size=(5, 4), out_channels=2, groups=2, offset_groups=2)
    inputs = case.inputs(device=device, spread=1.0)
    assert torch.autograd.gradcheck(
        lambda input, offset, weight, bias, mask: deform_conv2d(
            input, offset, weight, bias, mask=mask, border=border, **case.geometry()
        ),
        tuple(inputs[name] for name in ("input", "offset", "weight", "bias", "mask")),
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


@pytest.mark.parametrize("optional", [False, True], ids=["required", "all"])
def test_opcheck(optional, device):
    case = Case(images=2, channels=4, out_channels=2, mask=optional, bias=optional)
    inputs = case.inputs(device=device)
    forward = (inputs["input"], inputs["offset"], inputs["weight"], inputs.get("bias"))
    opcheck(FORWARD, (*forward, *map(list, case.geometry().values()), inputs.get("mask"), "zero"))
    opcheck(BACKWARD, backward_arguments(case, inputs))


def test_traces_with_dynamic_shapes(device, assert_close):
    compiled = torch.compile(deform_conv2d, backend="aot_eager", fullgraph=True, dynamic=True)
    for case in (Case(), Case(images=2, size=(8, 10))):
        inputs = case.inputs(device=device)
        actual = values_and_gradients(compiled, inputs, **case.geometry())
        assert_close(actual, values_and_gradients(deform_conv2d, inputs, **case.geometry()))


def test_meta_device_gives_shapes():
    inputs = {name: tensor.to("meta") for name, tensor in Case().inputs().items()}
    assert deform_conv2d(**inputs, **Case().geometry()).shape == (3, 6, 5, 9)


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offset_is_convolution(groups, device, assert_close):
    case = Case(groups=groups, mask=False)
    inputs = case.inputs(device=device)
    inputs["offset"] = torch.zeros_like(inputs["offset"])
    expected = F.conv2d(
        inputs["input"], inputs["weight"], inputs["bias"], **case.geometry(), groups=groups
    )
    assert_close(deform_conv2d(**inputs, **case.geometry()), expected)


def test_whole_pixel_offset_moves_the_input(device):
    """A 1x1 kernel with offset (dy, dx) = (1, 2) reads the pixel one below and two to the right."""
    image = torch.arange(20.0, device=device).view(1, 1, 4, 5)
    offset = torch.tensor([1.0, 2.0], device=device).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    output = deform_conv2d(image, offset, torch.ones(1, 1, 1, 1, device=device))
    expected = torch.zeros(4, 5, device=device)
    expected[:3, :3] = image[0, 0, 1:, 2:]
    assert torch.equal(output[0, 0], expected)


def test_borders_at_points_computed_by_hand(device, assert_close):
    """The map [[1, 2], [3, 4]] read at single points (y, x) by a 1x1 kernel."""
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64, device=device)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=device)
    expected = {  # (y, x): value, d/dy, d/dx with border zero; then with border legacy
        (0.25, 0.5): ((2.0, 2.0, 1.0), (2.0, 2.0, 1.0)),
        (-0.25, 0.5): ((1.125, 1.5, 0.75), (0.0, 0.0, 0.0)),
        (1.25, 0.5): ((2.625, -3.5, 0.75), (3.5, 0.0, 1.0)),
        (0.5, 1.75): ((0.75, 0.5, -3.0), (3.0, 2.0, 0.0)),
        (1.75, 1.5): ((0.5, -2.0, -1.0), (4.0, 0.0, 0.0)),
        (0.0, 0.0): ((1.0, 2.0, 1.0), (1.0, 2.0, 1.0)),  # right-hand derivatives
        (-1.0, 0.5): ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        (2.0, 0.5): ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    }
    for point, values in expected.items():
        for border, value in zip(("zero", "legacy"), values):
            offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64, device=device)
            offset[0, :, 0, 0] = torch.tensor(point)
            offset.requires_grad_()
            read = deform_conv2d(image, offset, weight, border=border)[0, 0, 0, 0]
            (gradient,) = torch.autograd.grad(read, offset)
            actual = torch.stack([read, *gradient[0, :, 0, 0]])
            assert_close(actual, torch.tensor(value, dtype=torch.float64, device=device))


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    ],
    ids=["channels_last", "every other", "transposed"],
)
def test_any_layout(layout, device, assert_same):
    """Layouts affect only speed: results do not change by a bit."""
    case = Case(groups=2, offset_groups=2)
    inputs = case.inputs(device=device)
    strided = {name: layout(t.detach()).requires_grad_() for name, t in inputs.items()}
    assert any(not tensor.is_contiguous() for tensor in strided.values())
    expected = values_and_gradients(deform_conv2d, inputs, **case.geometry())
    actual = values_and_gradients(deform_conv2d, strided, **case.geometry())
    assert_same(actual, expected)


@pytest.mark.parametrize("channels", [12, 130])
def test_results_do_not_depend_on_threads(channels, threads, assert_close):
    """Integer weights and gradients make a matrix multiply exact in any order of its sums. So the
    gradients of input, offset and mask could differ only by our own order of summation."""
    case = Case(channels=channels, size=(33, 31), kernel=(3, 3), stride=(1, 1), bias=False)
    inputs = case.inputs(torch.float32)
    inputs["weight"] = (4 * inputs["weight"].detach()).round().requires_grad_()
    results = []
    for count in (1, 2, 5):
        threads(count)
        output = deform_conv2d(**inputs, **case.geometry())
        grad = (torch.arange(output.numel()) % 7 - 3.0).view(output.shape)
        gradients = torch.autograd.grad(output, list(inputs.values()), grad)
        results.append([output, *gradients])
    for output, grad_input, grad_offset, grad_weight, grad_mask in results[1:]:
        assert torch.equal(grad_input, results[0][1])
        assert torch.equal(grad_offset, results[0][2])
        assert torch.equal(grad_mask, results[0][4])
        torch.testing.assert_close(output, results[0][0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(grad_weight, results[0][3], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9])
@pytest.mark.parametrize("border", ["zero", "legacy"])
def test_wild_offsets_read_zero(border, value, device):
    case = Case(mask=False, bias=False)
    inputs = case.inputs(torch.float32, device)
    for first in (0, 1):  # all dy, then all dx
        offset = inputs["offset"].detach().clone()
        offset[:, first::2] = value
        wild = {**inputs, "offset": offset.requires_grad_()}
        output, grad_input, grad_offset, grad_weight = values_and_gradients(
            deform_conv2d, wild, **case.geometry(), border=border
        )
        for tensor in (output, grad_input, grad_offset, grad_weight):
            assert not tensor.any()


def test_an_infinite_pixel_does_not_spread(device):
    """An infinite pixel reaches the outputs that read it, and no others."""
    case = Case(images=2, mask=False)
    inputs = case.inputs(torch.float32, device)
    with torch.no_grad():
        inputs["input"][0, 0, 0, 0] = float("inf")
    output = deform_conv2d(**inputs, **case.geometry())
    assert output[1].isfinite().all()
    assert not output[0].isfinite().all() and output[0].isfinite().any()


def wrong(**changes) -> dict:
    inputs = {name: tensor.detach() for name, tensor in Case(groups=2).inputs().items()}
    changed = {name: change(inputs[name]) for name, change in changes.items() if name in inputs}
    return {**Case().geometry(), **inputs, **changes, **changed}


@pytest.mark.parametrize(
    "call, message",
    [
        (wrong(input=lambda t: t[0]), r"input must be \(N, C, H, W\).*got shape \(12, 9, 7\)"),
        (wrong(input=lambda t: t[:, :, :0]), r"input must be .* got shape \(3, 12, 0, 7\)"),
        (
            wrong(input=lambda t: t.int()),
            r"input is torch.int32, but float32, float64, float16",
        ),
        (wrong(weight=lambda t: t[0]), r"weight must be .* got shape \(6, 3, 2\)"),
        (wrong(weight=lambda t: t[:, :5]), r"weight \(6, 5, 3, 2\) .* input \(3, 12, 9, 7\)"),
        (wrong(weight=lambda t: t[:5]), r"weight \(5, 6, 3, 2\) .* divides the 5 output channels"),
        (wrong(bias=lambda t: t[:4]), r"bias has shape \(4,\), expected \(6,\)"),
        (
            wrong(offset=lambda t: t[:, :11]),
            r"the shape of the offset is \(3, 11, 5, 9\), expected .* \(3, G\*12, 5, 9\)",
        ),
        (wrong(offset=lambda t: t[:2]), r"the shape of the offset is \(2, 12, 5, 9\)"),
        (wrong(offset=lambda t: t[0]), r"the shape of the offset is \(12, 5, 9\)"),
        (wrong(offset=lambda t: t[..., 1:]), r"the shape of the offset is \(3, 12, 5, 8\)"),
        (
            wrong(offset=lambda t: t.repeat(1, 5, 1, 1)),
            r"the shape of the offset is \(3, 60, 5, 9\).* groups that divide 12",
        ),
        (
            wrong(mask=lambda t: t[:, :5]),
            r"mask.shape\[1\] is not valid: got shape \(3, 5, 5, 9\), expected .* \(3, 6, 5, 9\)",
        ),
        (wrong(weight=lambda t: t.float()), r"weight is torch.float32 but input is torch.float64"),
        (wrong(mask=lambda t: t.float()), r"mask is torch.float32 but .* mask.to\(torch.float64\)"),
        (wrong(offset=lambda t: t.to("meta")), r"offset is on meta but input is on cpu; move it"),
        (wrong(stride=0), r"stride is an int or .* at least 1; got 0"),
        (wrong(stride=1.5), r"stride is an int or .* got 1.5"),
        (wrong(stride=(1, 2, 3)), r"stride is an int or a \(height, width\) pair.*got \(1, 2, 3\)"),
        (wrong(dilation=(1, 0)), r"dilation is an int or .* at least 1; got \(1, 0\)"),
        (wrong(padding=-1), r"padding is an int or .* at least 0; got -1"),
        (wrong(dilation=9), r"does not fit into input \(3, 12, 9, 7\).* output would be"),
        (wrong(border="mirror"), r"border must be one of .*got 'mirror'"),
    ],
)
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError, match=f"deform_conv2d: .*{message}"):
        deform_conv2d(**call)


@pytest.mark.parametrize(
    "place, change, message",
    [
        (1, lambda t: t[:2], r"offset must have shape \[3, 12, 5, 9\], got \[2, 12, 5, 9\]"),
        (1, lambda t: t[:, :10], r"offset \[3, 10, 5, 9\] must have groups \* 12 channels"),
        (2, lambda t: t[:, :5], r"input \[3, 12, 9, 7\] has 12 channels, which weight"),
        (2, lambda t: t.float(), "weight is Float but input Double"),
        (3, lambda t: t[:2], r"bias must have shape \[6\], got \[2\]"),
        (4, lambda t: [0, 1], "must be at least 1 and below"),
        (7, lambda t: t[:, :3], r"mask must have shape \[3, 6, 5, 9\], got \[3, 3, 5, 9\]"),
        (8, lambda t: "mirror", "border is 'zero' or 'legacy', got 'mirror'"),
    ],
)
def test_operator_protects_memory(place, change, message):
    """The registered operator checks sizes, since it can be called without the public function."""
    inputs = {name: tensor.detach() for name, tensor in Case().inputs().items()}
    tensors = [inputs[name] for name in ("input", "offset", "weight", "bias")]
    call = [*tensors, [2, 1], [1, 2], [1, 2], inputs["mask"], "zero"]
    call[place] = change(call[place])
    with pytest.raises(RuntimeError, match=message):
        FORWARD(*call)


def test_backward_operator_checks_the_gradient():
    grad, *rest = backward_arguments(Case(), Case().inputs())
    with pytest.raises(RuntimeError, match=r"grad_output must have shape \[3, 6, 5, 9\]"):
        BACKWARD(grad[:, :5], *rest)
