"""The unchanged CUDA host code of the RoI operators, run on the CPU: plans, RoI lists, layouts and
launches against the reference. Only the device is missing: the kernels run in the emulator."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

import reference
from cuda_emulator import cases, host

pytestmark = pytest.mark.slow  # compiling the host code takes a minute

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}
# Bytes of shared memory per block: all that sm_90 has; one plane of the calls below; less than one.
ALL, ONE, NONE = 227 << 10, 2000, 100
SHARED = "int64_t(properties->sharedMemPerBlockOptin)"
WITH_OFFSETS = ("deform_roi_pool", "deform_roi_align")
FROM_ENVIRONMENT = 'std::atoi(std::getenv("SHARED_BYTES"))'


@dataclass(frozen=True)
class Call:
    operator: str
    images: int = 2
    top_channels: int = 4
    groups: int = 4
    size: tuple = (9, 13)
    rois: int = 7
    bins: tuple = (4, 3)
    classes: int = 2
    parts: tuple | None = (2, 3)  # None: no offset
    keywords: dict = field(default_factory=dict)
    channels_last: bool = False
    float_coordinates: bool = False  # float32 coordinates with half-precision input

    def tensors(self, dtype):
        """input, rois, offset, grad_output"""
        half = dtype in (torch.float16, torch.bfloat16)
        coordinates = torch.float32 if half and self.float_coordinates else dtype
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (self.images, self.top_channels * self.groups, *self.size)
        input = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
        rois = cases.random_rois(self.rois, max(self.images, 1), torch.float64).to(coordinates)
        shape = (self.rois, 2 * self.classes, *(self.parts or ()))
        offset = torch.randn(shape, dtype=coordinates) if self.parts else None
        grad_output = torch.randn(self.rois, self.top_channels, *self.bins, dtype=dtype)
        return input, rois, offset, grad_output * (torch.rand(grad_output.shape) > 0.2)

    @property
    def arguments(self):
        keywords = {"output_size": self.bins, "spatial_scale": 0.2617, "round_rois": True}
        if self.operator == "deform_roi_pool":
            group_size = math.isqrt(self.groups)
            keywords |= {"group_size": group_size, "samples_per_part": 4, "gamma": 0.3141}
        if self.operator == "deform_roi_align":
            del keywords["round_rois"]
            keywords |= {"sampling_ratio": 0, "gamma": 0.3141}
        return keywords | self.keywords

    def run(self, operator, tensors):
        """Return the output and the gradients of input and offset."""
        input, rois, offset, grad_output = tensors
        if self.operator in WITH_OFFSETS:
            output = operator.forward(input, rois, offset, **self.arguments)
            return output, *operator.backward(grad_output, input, rois, offset, **self.arguments)
        sizes = {"input_size": input.shape, "channels_last": self.channels_last}
        output = operator.forward(input, rois, **self.arguments)
        return output, operator.backward(grad_output, rois, **self.arguments, **sizes)

    def expected(self, tensors):
        """Return the same from the reference, in the type of coordinates and sums: whether a sample
        counts may depend on the last digit of its coordinate."""
        sums = cases.sum_type(tensors[0].dtype)
        input, rois, offset, grad_output = (t if t is None else t.to(sums) for t in tensors)
        leaves = [leaf for leaf in (input, offset) if leaf is not None]
        if self.images == 0:
            return torch.zeros_like(grad_output), *map(torch.zeros_like, leaves)
        for leaf in leaves:
            leaf.requires_grad_()
        given = (input, rois, offset) if self.operator in WITH_OFFSETS else (input, rois)
        output = getattr(reference, self.operator)(*given, **self.arguments)
        return output.detach(), *cases.gradients((output * grad_output).sum(), leaves)


deform = Call("deform_roi_pool")
align = Call("deform_roi_align", groups=1, top_channels=5, classes=1, parts=(4, 3))
ps = Call("ps_roi_pool", groups=12, parts=None)
CALLS = {
    "groups and classes": deform,
    "channels-last": replace(deform, channels_last=True),
    "float32 coordinates": replace(deform, float_coordinates=True),
    "one group": replace(deform, groups=1, top_channels=12, classes=1),
    "no offset, one sample": replace(deform, parts=None, keywords={"samples_per_part": 1}),
    "two samples": replace(deform, keywords={"samples_per_part": 2, "round_rois": False}),
    "seven samples": replace(deform, keywords={"samples_per_part": 7}, rois=3),
    "parts are bins are groups": replace(deform, bins=(2, 2), parts=(2, 2), rois=70, images=3),
    "more parts and groups than bins": replace(deform, groups=9, bins=(2, 1), parts=(5, 3)),
    "wide map": replace(deform, size=(3, 150), groups=1, keywords={"spatial_scale": 3.017}),
    "no RoIs": replace(deform, rois=0),
    "no images": replace(deform, images=0, rois=0),
    "align": align,
    "align, channels-last": replace(align, channels_last=True),
    "align, float32 coordinates": replace(align, float_coordinates=True),
    "align, three samples": replace(align, keywords={"sampling_ratio": 3}, rois=70, images=3),
    "align, no offset": replace(align, parts=None),
    "align, no RoIs": replace(align, rois=0),
    "position-sensitive": ps,
    "position-sensitive, channels-last": replace(ps, channels_last=True),
    "position-sensitive, float32 RoIs": replace(ps, float_coordinates=True),
    "position-sensitive, many RoIs": replace(ps, rois=70, images=3, keywords={"round_rois": False}),
    "position-sensitive, wide map": replace(
        ps, groups=2, bins=(2, 1), size=(3, 150), keywords={"spatial_scale": 3.017}
    ),
    "position-sensitive, no RoIs": replace(ps, rois=0),
    "position-sensitive, no images": replace(ps, images=0, rois=0),
}


@pytest.fixture(scope="module")
def operators(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("roi_pool_host")
    csrc = host.copy_with([("cuda/roi_pool_cuda.h", SHARED, FROM_ENVIRONMENT)], folder)
    names = ("deform_roi_pool", "ps_roi_pool")
    libraries = {name: host.build(name, folder, csrc) for name in names}
    libraries["deform_roi_align"] = libraries["deform_roi_pool"]
    return {name: host.Operator(name, library) for name, library in libraries.items()}


@pytest.fixture(autouse=True)
def restore():
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(actual, value, dtype):
    tolerance = TOLERANCES[dtype] * max(1.0, value.abs().max().item() if value.numel() else 1.0)
    torch.testing.assert_close(actual.to(value.dtype), value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("in_order", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("shared", [ALL, ONE, NONE])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[len("torch.") :])
@pytest.mark.parametrize("name", CALLS)
def test_equals_reference(name, dtype, shared, in_order, operators, monkeypatch):
    monkeypatch.setenv("SHARED_BYTES", str(shared))
    call = CALLS[name]
    torch.manual_seed(0)
    tensors = call.tensors(dtype)
    torch.use_deterministic_algorithms(in_order)
    output, *grads = call.run(operators[call.operator], tensors)
    expected_output, *expected_grads = call.expected(tensors)
    assert output.dtype == dtype
    assert_close(output, expected_output, dtype)
    memory_format = torch.channels_last if call.channels_last else torch.contiguous_format
    for tensor in (output, grads[0]):
        assert tensor.is_contiguous(memory_format=memory_format)
    for grad, value, leaf in zip(grads, expected_grads, (tensors[0], tensors[2])):
        assert grad.dtype == leaf.dtype and grad.shape == leaf.shape
        assert_close(grad, value, dtype)
    if call.operator in WITH_OFFSETS and call.parts is None:
        assert grads[1].numel() == 0


ON_INTEGERS = {
    "deform_roi_align": (align, {"sampling_ratio": 2}, [0.0, 4.0, 6.0, 12.0]),
    "deform_roi_pool": (
        deform,
        {"samples_per_part": 1, "round_rois": False},
        [0.5, 4.5, 6.5, 12.5],
    ),
}


@pytest.mark.parametrize("name", ON_INTEGERS)
def test_slopes_at_integers(name, operators, monkeypatch):
    """As on the CPU. Those of deform_roi_align are right-hand derivatives, in which pixels of
    weight 0 take part; those of deform_roi_pool are 0."""
    monkeypatch.setenv("SHARED_BYTES", str(ALL))
    call, keywords, box = ON_INTEGERS[name]
    input, rois, offset, grad_output = call.tensors(torch.float64)
    rois[:, 1:] = torch.tensor(box)
    if name == "deform_roi_pool":  # one sample per bin, two pixels apart
        rois[:, 3:] = rois[:, 1:3] + 2.0 * torch.tensor(call.bins[::-1])
    offset = offset.round()
    keywords |= {"spatial_scale": 1.0, "gamma": 0.25 if name == "deform_roi_align" else 0.5}
    call = replace(call, keywords=keywords)
    actual = call.run(operators[name], (input, rois, offset, grad_output))
    cpu = torch.ops.d2_deformable
    expected = (
        getattr(cpu, name)(input, rois, offset, **call.arguments),
        *getattr(cpu, f"{name}_backward")(grad_output, input, rois, offset, **call.arguments),
    )
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    assert expected[0].any() and expected[2].any() == (name == "deform_roi_align")


@pytest.mark.parametrize("name", ["groups and classes", "position-sensitive"])
def test_roi_of_no_image(name, operators, monkeypatch):
    monkeypatch.setenv("SHARED_BYTES", str(ALL))
    call = replace(CALLS[name], images=0)
    with pytest.raises(RuntimeError, match="7 RoIs of no images"):
        call.run(operators[call.operator], call.tensors(torch.float32))
