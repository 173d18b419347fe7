"""Properties of every operator in every type: float64 to bfloat16, autocast, memory formats."""

import subprocess
import sys

import pytest
import torch
from ops.arguments import every_argument
from torch.library import opcheck

from d2_deformable import ops
from devices import HAS_GPU

HALF_TYPES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALF_TYPES]


def calls(dtype=torch.float32, coordinates=None, device="cpu") -> dict:
    """Each operator with its arguments and its tensors, all of which except RoIs need gradients."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape, scale=1.0, to=None):
        tensor = scale * torch.randn(shape, generator=generator)
        return tensor.to(device, to or dtype).requires_grad_()

    coordinates = coordinates or dtype
    # All numbers are integers or halves, which every type represents exactly.
    rois = torch.tensor([[0, 1, 2, 40, 50], [1, 0, 0, 60, 30], [1, 10.5, 4, 30, 75]])
    rois = rois.to(device, coordinates)
    pool = {"output_size": 3, "spatial_scale": 0.25}
    return {
        "deform_conv2d": (
            ops.deform_conv2d,
            {
                "input": random(2, 12, 13, 9),
                "offset": random(2, 36, 13, 9, scale=2.0, to=coordinates),
                "weight": random(6, 6, 3, 3, scale=0.2),
                "bias": random(6),
                "mask": random(2, 18, 13, 9, to=coordinates),
            },
            {"padding": 1},
        ),
        "deform_roi_pool": (
            ops.deform_roi_pool,
            {
                "input": random(2, 18, 13, 9),
                "rois": rois,
                "offset": random(3, 2, 3, 3, to=coordinates),
            },
            {**pool, "group_size": 3},
        ),
        "deform_roi_align": (
            ops.deform_roi_align,
            {
                "input": random(2, 18, 13, 9),
                "rois": rois,
                "offset": random(3, 2, 3, 3, to=coordinates),
            },
            pool,
        ),
        "ps_roi_pool": (ops.ps_roi_pool, {"input": random(2, 18, 13, 9), "rois": rois}, pool),
    }


NAMES = list(calls())
POOLS = {name: calls()[name] for name in NAMES[1:]}
POOLS["deform_roi_align"] = (ops.deform_roi_align, POOLS["deform_roi_pool"][1],
                             {"output_size": 3, "spatial_scale": 0.25})  # fmt: skip


def values_and_gradients(function, tensors, arguments) -> list:
    output = function(**tensors, **arguments)
    # These are integers, so the gradient of the output is the same in every type.
    weights = (torch.arange(output.numel(), device=output.device) % 7 - 3.0).view(output.shape)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return [output, *torch.autograd.grad((output * weights).sum(), leaves)]


def cast(tensors, dtype) -> dict:
    return {n: t.detach().to(dtype).requires_grad_(t.requires_grad) for n, t in tensors.items()}


def assert_near(actual, expected, dtype):
    """Check that differences are small relative to the tensors (2-norms) for maps of `dtype`.

    Where sums of rounded numbers nearly cancel, their error exceeds one rounding.
    """
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
    for mine, other in zip(actual, expected, strict=True):
        mine, other = mine.detach().double().cpu(), other.detach().double().cpu()
        assert (mine - other).norm() <= bound[dtype] * other.norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coordinates", ["half", "float32"])
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision_rounds_the_result_alone(name, dtype, coordinates, device):
    """Coordinates, weights and sums are float32. On the CPU the result is that of float32, rounded
    once; CUDA also rounds the sampled values."""
    kept = torch.float32 if coordinates == "float32" else dtype
    function, tensors, arguments = calls(dtype, kept, device)[name]
    actual = values_and_gradients(function, tensors, arguments)
    expected = values_and_gradients(function, cast(tensors, torch.float32), arguments)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    assert [t.dtype for t in actual] == [dtype, *(t.dtype for t in leaves)]
    if device.type == "cpu":
        assert all(torch.equal(mine, full.to(mine.dtype)) for mine, full in zip(actual, expected))
    assert_near(actual, expected, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_far_coordinates_in_half_precision(name, device):
    """Wide maps are read at the right place, because coordinates are summed in float32.

    At column 2,000 bfloat16 represents only every 8th pixel, float16 only every second half pixel.
    """
    function, tensors, arguments = calls(torch.bfloat16, torch.float32, device)[name]
    wide = torch.zeros(2, tensors["input"].shape[1], 13, 2049, device=device)
    wide[..., 2035] = 1
    tensors = {n: t.detach() for n, t in tensors.items()}
    if name == "deform_conv2d":
        zeros = torch.zeros(2, 36, 13, 2049, device=device)
        zeros[:, 1::2] = 0.5
        tensors |= {"offset": zeros, "mask": torch.ones(2, 18, 13, 2049, device=device)}
    else:
        tensors["rois"] = tensors["rois"] + torch.tensor([0, 8100, 0, 8100, 0], device=device)
    full = {n: t.float() for n, t in tensors.items()} | {"input": wide}
    expected = function(**full, **arguments)
    actual = function(**tensors | {"input": wide.bfloat16()}, **arguments)
    assert (expected != 0).any()
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_opcheck(name, dtype, device):
    function, tensors, arguments = calls(dtype, torch.float32, device)[name]
    forward = getattr(torch.ops.d2_deformable, name).default
    tensors["input"] = channels_last(tensors["input"])
    arguments = every_argument(function, **tensors, **arguments)
    opcheck(forward, (arguments.pop("input"),), arguments)


def channels_last(tensor) -> torch.Tensor:
    return (
        tensor.detach()
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(tensor.requires_grad)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_is_that_of_the_input(name, dtype, device, assert_same):
    function, tensors, arguments = calls(dtype, device=device)[name]
    expected = values_and_gradients(function, tensors, arguments)
    assert expected[0].is_contiguous() and expected[1].is_contiguous()
    tensors = {**tensors, "input": channels_last(tensors["input"])}
    actual = values_and_gradients(function, tensors, arguments)
    for result in actual[:2]:  # the output and the gradient of the input
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert not result.is_contiguous()
    assert_same(actual, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_autocast_keeps_coordinates(name, dtype, device):
    """Maps and weights get autocast's type if a matrix multiply benefits from it; offsets, masks
    and RoIs stay float32."""
    function, tensors, arguments = calls(torch.float32, device=device)[name]
    convolution = name == "deform_conv2d"
    halves = {"input": dtype, "weight": dtype, "bias": dtype} if convolution else {}
    with torch.autocast(device.type, dtype=dtype):
        actual = values_and_gradients(function, tensors, arguments)
    assert actual[0].dtype == (dtype if convolution else torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in actual[1:])
    by_hand = {n: t.detach().to(halves.get(n, t.dtype)) for n, t in tensors.items()}
    torch.testing.assert_close(actual[0].detach(), function(**by_hand, **arguments))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_autocast_accepts_mixed_types(name, dtype, device):
    """Maps in half precision with offsets in float32, and the other way round."""
    function, tensors, arguments = calls(torch.float32, device=device)[name]
    tensors = {n: t.detach() for n, t in tensors.items()}
    coordinates = {"offset", "mask", "rois"} & set(tensors)
    with torch.autocast(device.type, dtype=dtype):
        expected = function(**tensors, **arguments)
        for half in ({"input"}, coordinates, set(tensors)):
            mixed = {n: t.to(dtype) if n in half else t for n, t in tensors.items()}
            output = function(**mixed, **arguments)
            assert output.dtype == (dtype if "input" in half else expected.dtype)
            if half == coordinates:  # already rounded by the caller, not by autocast
                rounded = {n: t.float() for n, t in mixed.items()}
                expected_of_rounded = function(**rounded, **arguments)
                torch.testing.assert_close(output, expected_of_rounded)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_explains_what_it_does_not_cast(name):
    function, tensors, arguments = calls()[name]
    tensors = {n: t.detach() for n, t in tensors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for other in set(tensors) - {"input"}:
            for dtype in (torch.float64, torch.int32):
                wrong = {**tensors, other: tensors[other].to(dtype)}
                with pytest.raises(ValueError, match=f"{other} is {dtype} but input is"):
                    function(**wrong, **arguments)
        wrong = {**tensors, "input": tensors["input"].double()}
        with pytest.raises(ValueError, match="is torch.float32 but input is torch.float64"):
            function(**wrong, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_float64_alone(name, device):
    function, tensors, arguments = calls(torch.float64, device=device)[name]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = function(**tensors, **arguments)
    assert output.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_autocast_compiles(name, device):
    function, tensors, arguments = calls(torch.float32, device=device)[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        expected = values_and_gradients(function, tensors, arguments)
        actual = values_and_gradients(compiled, tensors, arguments)
    assert_near(actual, expected, torch.bfloat16)


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_refused_by_the_operator_itself(name):
    function, tensors, arguments = calls()[name]
    operator = getattr(torch.ops.d2_deformable, name)
    integers = {n: t.detach().int() for n, t in tensors.items()}
    with pytest.raises(RuntimeError, match="not implemented for 'Int'"):
        operator(**every_argument(function, **integers, **arguments))


@pytest.mark.parametrize("name", NAMES)
def test_another_device_is_refused_by_the_operator_itself(name):
    """In torchvision's deform_conv2d this is an illegal memory access (its issue 8744)."""
    function, tensors, arguments = calls()[name]
    operator = getattr(torch.ops.d2_deformable, name)
    for moved in set(tensors) - {"input"}:
        elsewhere = {**tensors, moved: tensors[moved].detach().to("meta")}
        with pytest.raises(ValueError, match=f"{moved} is on meta but input is on cpu"):
            function(**elsewhere, **arguments)
        if HAS_GPU:
            elsewhere[moved] = tensors[moved].detach().cuda()
            with pytest.raises(RuntimeError, match=f"{moved} is on cuda:0 but input on cpu"):
                operator(**every_argument(function, **elsewhere, **arguments))


needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU and operators built for CUDA")


@needs_gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_cpu(name, dtype):
    results = []
    for device in ("cpu", "cuda"):
        function, tensors, arguments = calls(dtype, device=device)[name]
        results.append(values_and_gradients(function, tensors, arguments))
    assert_near(results[1], results[0], dtype)


@pytest.mark.skipif(
    not HAS_GPU or torch.cuda.device_count() < 2,
    reason="needs two GPUs and operators for them",
)
@pytest.mark.parametrize("name", NAMES)
def test_another_gpu_than_the_current_one(name):
    results = []
    for device in ("cuda:0", "cuda:1"):
        function, tensors, arguments = calls(device=device)[name]
        results.append(values_and_gradients(function, tensors, arguments))
        assert all(result.device == torch.device(device) for result in results[-1])
    assert_near(results[1], results[0], torch.float32)


@needs_gpu
@pytest.mark.parametrize("name", ["deform_roi_pool", "deform_roi_align", "ps_roi_pool"])
def test_wrong_image_index_stops_the_kernel(name):
    """Runs in its own process, since no CUDA call works after a device-side assertion."""
    call = f"""
import torch
from d2_deformable import ops
from devices import HAS_GPU
rois = torch.tensor([[2.0, 0, 0, 9, 9]], device="cuda")
image = torch.zeros(2, 9, 5, 5, device="cuda")
ops.{name}(image, rois, output_size=3, spatial_scale=1.0)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert done.returncode != 0
    assert "a RoI names an image that input does not hold" in done.stdout + done.stderr


@needs_gpu
@pytest.mark.parametrize("name", NAMES)
def test_current_stream(name, assert_close):
    """Kernels run on the current stream: they wait for the work queued on it before them."""
    function, tensors, arguments = calls(device="cuda")[name]
    expected = function(**tensors, **arguments)
    image = tensors["input"].detach()
    late = torch.zeros_like(image)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        late.copy_(image)
        actual = function(**{**tensors, "input": late}, **arguments)
    torch.cuda.synchronize()
    assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_threads_changes_a_bit(name, dtype, threads):
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(values_and_gradients(*calls(dtype)[name]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_gpu
@pytest.mark.parametrize("name", NAMES)
def test_deterministic_algorithms(name, assert_close):
    """Results are equal to the bit each time, and equal those of any order up to rounding."""
    function, tensors, arguments = calls(device="cuda")[name]
    in_any_order = values_and_gradients(function, tensors, arguments)
    torch.use_deterministic_algorithms(True)
    try:
        first = values_and_gradients(function, tensors, arguments)
        for _ in range(3):
            again = values_and_gradients(function, tensors, arguments)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
    for actual, expected in zip(first, in_any_order, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("op", ["deform_conv2d", *POOLS])
def test_what_is_no_tensor_is_named(op):
    function, tensors, arguments = {**calls(), **POOLS}[op]
    for name, tensor in tensors.items():
        message = rf"^{op}: {name} is a ndarray; expected a torch.Tensor. Convert it .*\({name}\)$"
        with pytest.raises(ValueError, match=message):
            function(**{**tensors, name: tensor.detach().numpy()}, **arguments)
    for name in {"input", "weight", "rois"} & set(tensors):
        with pytest.raises(ValueError, match=f"^{op}: {name} is None; expected a torch.Tensor$"):
            function(**{**tensors, name: None}, **arguments)


@pytest.mark.parametrize("op", POOLS)
def test_boxes_of_each_image_must_be_joined(op):
    function, tensors, arguments = POOLS[op]
    rois = [tensors["rois"][:1, 1:], tensors["rois"][1:, 1:]]
    with pytest.raises(ValueError, match=f"{op}: rois is a list of length 2; .*R, 5.*") as error:
        function(**{**tensors, "rois": rois}, **arguments)
    joined = eval(str(error.value).partition("images: ")[2], {"torch": torch, "rois": rois})
    assert torch.equal(joined, tensors["rois"])


@pytest.mark.parametrize("scale", [0, 0.0, -0.25, float("nan"), float("inf")])
@pytest.mark.parametrize("op", POOLS)
def test_a_scale_that_is_none_is_refused(op, scale):
    function, tensors, arguments = POOLS[op]
    with pytest.raises(ValueError, match=f"{op}: spatial_scale is {scale}; expected map pixels"):
        function(**tensors, **{**arguments, "spatial_scale": scale})


@pytest.mark.parametrize("op", POOLS)
def test_the_scale_may_be_an_argument_of_a_graph(op):
    """Its check does not break the graph."""
    torch.compiler.reset()
    function, tensors, arguments = POOLS[op]
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def pool(scale):
        return function(**tensors, **{**arguments, "spatial_scale": scale})

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=True)
    for scale in (0.25, 0.5, 0.125):
        torch.testing.assert_close(compiled(scale), pool(scale))
    traced = torch.jit.trace(
        lambda image, rois: function(image, rois, **arguments), (tensors["input"], tensors["rois"])
    )
    expected = function(tensors["input"], tensors["rois"], **arguments)
    torch.testing.assert_close(traced(tensors["input"], tensors["rois"]), expected)
