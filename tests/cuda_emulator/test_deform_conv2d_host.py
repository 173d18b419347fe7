"""The unchanged CUDA host code of deform_conv2d, run on the CPU: chunks, views, matrix multiplies
and launches against the reference. Only the device is missing: matrix multiplies are plain loops,
and the kernels run in the emulator."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from cuda_emulator import host

pytestmark = pytest.mark.slow  # compiling the host code takes a minute

# So few that every call has several chunks, some of which end in the middle of an image.
COLUMN_BYTES = 6000
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2**-8,
    torch.bfloat16: 2**-5,
}


@dataclass(frozen=True)
class Call:
    images: int = 2
    channels: int = 16
    out_channels: int = 6
    size: tuple = (7, 5)
    kernel: tuple = (3, 2)
    stride: tuple = (2, 1)
    padding: tuple = (1, 2)
    dilation: tuple = (1, 2)
    groups: int = 1
    offset_groups: int = 2
    mask: bool = True
    bias: bool = True
    border: str = "zero"
    channels_last: bool = False
    float_offset: bool = False  # float32 offsets with half-precision input

    def tensors(self, dtype):
        """input, offset, weight, bias, mask, grad_output"""
        taps = math.prod(self.kernel)
        spans = [
            self.size[k] + 2 * self.padding[k] - self.dilation[k] * (self.kernel[k] - 1)
            for k in (0, 1)
        ]
        out_size = [(span - 1) // step + 1 for span, step in zip(spans, self.stride)]
        half = dtype in (torch.float16, torch.bfloat16)
        coordinates = torch.float32 if half and self.float_offset else dtype
        shape = (self.images, self.offset_groups * taps * 2, *out_size)
        # Offsets of about two pixels, not near integers, where gradients jump.
        offset = (2 * torch.randn(shape)).round() + 0.25 + 0.5 * torch.rand(shape)
        mask = torch.rand(self.images, self.offset_groups * taps, *out_size)
        input = torch.randn(self.images, self.channels, *self.size, dtype=dtype)
        weight_shape = (self.out_channels, self.channels // self.groups, *self.kernel)
        grad_output = torch.randn(self.images, self.out_channels, *out_size, dtype=dtype)
        if self.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
            grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        return (
            input,
            offset.to(coordinates),
            torch.randn(weight_shape, dtype=dtype),
            torch.randn(self.out_channels, dtype=dtype) if self.bias else None,
            mask.to(coordinates) if self.mask else None,
            grad_output,
        )

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation


CALLS = {
    "two offset groups, mask, bias": Call(),
    "channels-last": Call(channels_last=True, offset_groups=1, mask=False),
    "weight groups": Call(groups=2, offset_groups=1, channels_last=True),
    "weight groups that cut offset groups": Call(channels=30, groups=3, offset_groups=2),
    "depthwise": Call(channels=6, groups=6, offset_groups=3, bias=False),
    "odd channels, legacy border": Call(channels=9, offset_groups=1, border="legacy"),
    "float32 offsets": Call(float_offset=True, channels_last=True),
    "five images": Call(images=5, size=(4, 4), kernel=(1, 1), offset_groups=1, dilation=(1, 1)),
    "one channel": Call(channels=1, out_channels=1, offset_groups=1, channels_last=True),
    "one channel, one tap": Call(
        channels=1, out_channels=1, offset_groups=1, kernel=(1, 1), size=(40, 40)
    ),
    "one row": Call(images=1, size=(1, 1), kernel=(1, 1), padding=(0, 0), stride=(1, 1)),
    "no images": Call(images=0),
}


@pytest.fixture(scope="module")
def operator(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    small = ("cuda/plan.h", "kColumnBytes = 32 << 20", f"kColumnBytes = {COLUMN_BYTES}")
    return host.Operator(
        "deform_conv2d", host.build("deform_conv2d", folder, host.copy_with([small], folder))
    )


@pytest.fixture(autouse=True)
def restore():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    yield
    torch.use_deterministic_algorithms(False)
    matmul.fp32_precision, conv.fp32_precision = before


def expected(call, tensors):
    """Output and gradients of the reference in float64, for the same rounded tensors."""
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors[:5]]
    input, offset, weight, bias, mask = leaves
    output = reference.deform_conv2d(
        input, offset, weight, bias, *call.geometry, mask=mask, border=call.border
    )
    given = [leaf for leaf in (input, offset, weight, mask) if leaf is not None]
    grads = torch.autograd.grad(output, given, tensors[5].double())
    return output.detach(), grads


def assert_close(actual, value, dtype):
    tolerance = TOLERANCES[dtype] * max(1.0, value.abs().max().item() if value.numel() else 1.0)
    torch.testing.assert_close(actual.double(), value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("in_order", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[len("torch.") :])
@pytest.mark.parametrize("name", CALLS)
def test_equals_reference(name, dtype, in_order, operator):
    call = CALLS[name]
    torch.manual_seed(0)
    tensors = call.tensors(dtype)
    input, offset, weight, bias, mask, grad_output = tensors
    torch.use_deterministic_algorithms(in_order)
    output = operator.forward(input, offset, weight, bias, *call.geometry, mask, call.border)
    grads = operator.backward(grad_output, input, offset, weight, mask, *call.geometry, call.border)
    expected_output, expected_grads = expected(call, tensors)
    assert output.dtype == dtype
    assert_close(output, expected_output, dtype)
    memory_format = torch.channels_last if call.channels_last else torch.contiguous_format
    for tensor in (output, grads[0]):
        assert tensor.is_contiguous(memory_format=memory_format)
    for grad, value, leaf in zip(grads, expected_grads, (input, offset, weight, mask)):
        assert grad.dtype == leaf.dtype and grad.shape == leaf.shape
        assert_close(grad, value, dtype)
    if mask is None:
        assert grads[3].numel() == 0


@pytest.mark.parametrize("border", ["zero", "legacy"])
def test_slopes_at_integers(border, operator):
    """As on the CPU: right-hand derivatives, and 0 at exactly -1."""
    call = dataclasses.replace(CALLS["two offset groups, mask, bias"], border=border)
    input, offset, weight, bias, mask, grad_output = call.tensors(torch.float64)
    offset = offset.round()
    tensors = (grad_output, input, offset, weight, mask)
    actual = operator.backward(*tensors, *call.geometry, border)
    expected = torch.ops.d2_deformable.deform_conv2d_backward(*tensors, *call.geometry, border)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


class Record(TorchDispatchMode):
    """Records the names of ATen operators, without views."""

    VIEWS = {"permute", "transpose", "view", "narrow", "slice", "select", "detach", "expand", "t"}

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return function(*arguments, **(keywords or {}))


def record(call, operator, dtype=torch.float32):
    input, offset, weight, bias, mask, grad_output = call.tensors(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    with Record() as forward:
        operator.forward(input, offset, weight, bias, *call.geometry, mask, call.border)
    with Record() as backward:
        operator.backward(grad_output, input, offset, weight, mask, *call.geometry, call.border)
    return sorted(forward.names), sorted(backward.names)


@pytest.mark.parametrize("name", ["channels-last", "weight groups"])
def test_channels_last_is_not_copied(name, operator):
    """Matrix multiplies add to the output, which already holds the bias. Backward clears and copies
    no more than the layout of the result requires."""
    call = dataclasses.replace(CALLS[name], mask=False)
    forward, backward = record(call, operator)
    assert forward == ["copy_", "empty", "empty"]  # columns and output
    # grad_weight is copied to the weight's contiguous format.
    assert set(backward) == {"empty", "zeros", "_to_copy"} and backward.count("_to_copy") == 1
    without_bias, _ = record(dataclasses.replace(call, bias=False), operator)
    assert without_bias == ["empty", "empty"]


# cublasComputeType_t
COMPUTE_64F, COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 70, 68, 77
# cublasMath_t: only the compute type decides the precision
DISALLOW_REDUCED_PRECISION_REDUCTION = 16


def settings():
    """PyTorch's settings for the precision of matrix multiplies."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        (cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision),
        (torch.backends.fp32_precision, cudnn.fp32_precision),
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[len("torch.") :])
@pytest.mark.parametrize("matmul", ["ieee", "tf32"])
@pytest.mark.parametrize("conv", ["ieee", "tf32"])
def test_matrix_multiplies_have_the_precision_of_convolutions(conv, matmul, dtype, operator):
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.backends.cuda.matmul.fp32_precision = matmul
    before = settings()
    operator.take_gemms()
    record(CALLS["channels-last"], operator, dtype)
    compute_type = COMPUTE_64F if dtype == torch.float64 else COMPUTE_32F
    if dtype == torch.float32 and conv == "tf32":
        compute_type = COMPUTE_32F_FAST_TF32
    gemms = operator.take_gemms()
    assert len(gemms) > 4
    assert set(gemms) == {(compute_type, DISALLOW_REDUCED_PRECISION_REDUCTION)}
    assert settings() == before
    # The mode that ATen set is restored for the next user of the handle.
    assert operator.library.math_mode() == (3 if matmul == "tf32" else 0)
