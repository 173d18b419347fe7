"""deform_conv2d's CPU kernels: shapes that cut their tiles, slices and vectors at any place, each
instruction set, and any number of threads."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reference
from d2_deformable.ops import deform_conv2d

# name: N, C, (H, W), O, kernel, stride, padding, dilation, weight groups, offset groups
SHAPES = {
    "odd channels": (2, 66, (9, 11), 30, (3, 3), 1, 1, 1, 1, 1),
    "5x5": (1, 20, (11, 9), 33, (5, 5), 1, 2, 1, 1, 2),
    "1x7": (2, 17, (6, 14), 9, (1, 7), 1, (0, 3), 1, 1, 1),
    "stride 2": (3, 40, (13, 12), 48, (3, 3), 2, 1, 1, 2, 1),
    "several tiles": (1, 8, (19, 17), 70, (3, 2), 1, 1, (1, 2), 1, 1),
    "several slices": (2, 150, (6, 7), 5, (3, 3), 1, 2, 2, 1, 1),
    "32 groups": (1, 128, (7, 9), 128, (3, 3), 1, 1, 1, 32, 1),
    "depthwise, 2 outputs each": (2, 24, (8, 7), 48, (3, 3), 1, 1, 1, 24, 3),
    "depthwise": (1, 72, (7, 13), 72, (3, 3), 1, 1, 1, 72, 1),
    "depthwise, odd channels": (2, 37, (5, 9), 37, (5, 3), 2, (2, 1), 1, 37, 1),
    "depthwise, offset groups": (1, 66, (6, 7), 66, (2, 2), 1, 0, 1, 66, 3),
    "groups of 3, 2 outputs each": (1, 99, (7, 5), 66, (3, 3), 1, 1, 1, 33, 3),
    "groups of 2, 5 outputs each": (2, 38, (4, 9), 95, (1, 3), 1, (0, 1), 1, 19, 1),
    "offset groups narrower than vectors": (1, 30, (8, 9), 16, (3, 3), 1, 1, 1, 1, 10),
    "an offset group per channel": (1, 12, (5, 6), 6, (2, 2), 1, 0, 1, 3, 12),
    "offset groups that cut weight groups": (2, 60, (7, 6), 9, (3, 3), 1, 1, 1, 3, 4),
    "weight groups that cut slices": (1, 200, (5, 6), 10, (3, 1), 1, (1, 0), 1, 5, 2),
    "many outputs": (1, 6, (5, 4), 100, (1, 1), 1, 0, 1, 2, 1),
}


def call(shape, dtype) -> tuple[dict, dict]:
    """Tensors that require gradients, with offsets at least 0.1 pixels from integers; geometry."""
    images, channels, size, outputs, kernel, *geometry, groups, offset_groups = shape
    generator = torch.Generator().manual_seed(1)

    def random(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    tensors = {
        "input": random(images, channels, *size),
        "weight": random(outputs, channels // groups, *kernel) / channels**0.5,
        "bias": random(outputs),
    }
    geometry = dict(zip(("stride", "padding", "dilation"), geometry, strict=True))
    plain = torch.nn.functional.conv2d(*tensors.values(), **geometry, groups=groups)
    taps = offset_groups * kernel[0] * kernel[1]
    whole = (2 * random(images, 2 * taps, *plain.shape[2:])).round()
    tensors["offset"] = whole + 0.5 + 0.4 * random(*whole.shape).tanh()
    tensors["mask"] = random(images, taps, *plain.shape[2:]).sigmoid()
    return {n: t.to(dtype).requires_grad_() for n, t in tensors.items()}, geometry


def values_and_gradients(function, tensors, **arguments) -> list:
    output = function(**tensors, **arguments)
    weights = torch.cos(torch.arange(output.numel())).view(output.shape).to(output.dtype)
    return [output, *torch.autograd.grad((output * weights).sum(), list(tensors.values()))]


@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_reference(name, dtype, border, assert_close):
    tensors, geometry = call(SHAPES[name], dtype)
    doubles = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    arguments = {**geometry, "border": border}
    actual = values_and_gradients(deform_conv2d, tensors, **arguments)
    expected = values_and_gradients(reference.deform_conv2d, doubles, **arguments)
    assert_close(actual, [tensor.to(dtype) for tensor in expected])


CAPABILITIES = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set(capability):
    """Run the tests above in a process that is limited to one instruction set."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    answer = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    available = subprocess.run(
        [sys.executable, "-c", answer], env=environment, capture_output=True, text=True
    )
    if available.stdout.strip() != CAPABILITIES[capability]:
        pytest.skip(f"this machine has {available.stdout.strip()} instead")
    tests = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*tests, "-k", "test_equals_reference or test_layouts"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["odd channels", "32 groups", "depthwise, offset groups", "several slices"]
)
def test_layouts(name, dtype):
    """Channels-last maps are read and written in place; results are equal to the bit."""
    tensors, geometry = call(SHAPES[name], dtype)
    expected = values_and_gradients(deform_conv2d, tensors, **geometry)
    last = tensors["input"].detach().contiguous(memory_format=torch.channels_last)
    tensors["input"] = last.requires_grad_()
    actual = values_and_gradients(deform_conv2d, tensors, **geometry)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(mine, other) for mine, other in zip(actual, expected))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, (31, 33), 24, (3, 3), 1, 1, 1, 1, 1),
        (3, 130, (15, 17), 40, (3, 3), 1, 1, 1, 2, 5),
        (65, 12, (5, 6), 8, (3, 3), 1, 1, 1, 4, 1),
    ],
    ids=["one image", "batch 3", "batch 65"],
)
def test_results_are_the_same_to_the_bit_for_any_number_of_threads(shape, threads):
    tensors, geometry = call(shape, torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(values_and_gradients(deform_conv2d, tensors, **geometry))
    for result in results[1:]:
        assert all(torch.equal(mine, one) for mine, one in zip(result, results[0], strict=True))


@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("channels", [3, 20])
def test_pixels_that_are_not_read_do_not_leak(channels, value, border):
    """Row 0 is poisoned. Row y of the output reads rows y + 1 and, above the last one, y + 2; its
    first column reads far outside the map."""
    image = torch.randn(1, channels, 6, 7)
    image[:, :, 0] = value
    offset = torch.zeros(1, 2, 6, 7)
    offset[:, 0] = 1.25
    offset[:, 0, -2] = 1  # reads only the last row, with weight 1
    offset[..., 0] = 1e6
    tensors = {"input": image, "offset": offset, "weight": torch.randn(4, channels, 1, 1)}
    for tensor in tensors.values():
        tensor.requires_grad_()
    output, *gradients = values_and_gradients(deform_conv2d, tensors, border=border)
    assert not output[..., 0].any()
    assert all(tensor.isfinite().all() for tensor in (output, *gradients))
    # Pixels with a bilinear weight of 0 do not leak either.
    at_grid = deform_conv2d(image, torch.zeros_like(offset), tensors["weight"], border=border)
    assert at_grid[:, :, 1:].isfinite().all()
    below = torch.zeros_like(offset)
    below[:, 0] = -1
    above = image.detach().flip(2)
    read = deform_conv2d(above, below, tensors["weight"], border=border)
    assert read.isfinite().all()


def peak(function) -> int:
    """Peak number of bytes that `function` allocates."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


@pytest.mark.parametrize("channels_last", [False, True])
def test_columns_are_never_in_memory_as_a_whole(channels_last):
    """The operator's peak allocation, forward and backward: copies of its maps and weights, and
    scratch memory, but no columns (9 times the map)."""
    image = torch.randn(1, 32, 200, 220)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    offset = torch.randn(1, 18, 200, 220)
    weight = torch.randn(32, 32, 3, 3)
    for tensor in (image, offset, weight):
        tensor.requires_grad_()

    output = deform_conv2d(image, offset, weight, padding=1)
    map_bytes = image.numel() * 4
    forward = peak(lambda: deform_conv2d(image, offset, weight, padding=1))
    assert map_bytes <= forward < 3 * map_bytes  # the output, a channels-last copy, scratch
    backward = peak(lambda: output.backward(torch.ones_like(output)))
    assert map_bytes <= backward < 5 * map_bytes


@pytest.mark.parametrize("channels", [1, 32])
def test_narrow_offset_groups_are_not_padded(channels):
    """With an offset group per channel, backward allocates gradients and two copies of the map."""
    image = torch.randn(1, channels, 120, 130, requires_grad=True)
    offset = torch.randn(1, 18 * channels, 120, 130, requires_grad=True)
    weight = torch.randn(4, channels, 3, 3, requires_grad=True)
    output = deform_conv2d(image, offset, weight, padding=1)
    gradient = torch.ones_like(output)
    gradients = 4 * (image.numel() + offset.numel())
    assert peak(lambda: output.backward(gradient)) - gradients < 4 * 4 * image.numel()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not (shutil.which("g++") and shutil.which("nm")),
    reason="needs g++ and nm on x86-64",
)
@pytest.mark.parametrize(
    "target, flags", [("avx2", ["-mavx2", "-mfma"]), ("avx512", ["-mavx512f", "-mfma"])]
)
def test_kernels_share_no_function_with_other_code(target, flags, tmp_path):
    """If two object files define a function, the linker keeps either, whatever its instructions.

    So everything that the kernels define must be in the namespace of their instruction set.
    """
    source = Path(__file__).parents[2] / "csrc/cpu/kernels/cpu_kernel_table.cpp"
    built = tmp_path / "table.o"
    command = ["g++", "-std=c++20", "-O0", "-fno-exceptions", "-c", source, "-o", built]
    subprocess.run([*command, f"-DD2_CPU_TARGET={target}", *flags], check=True)
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", "--extern-only", built], capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2)[2] for line in listed.stdout.splitlines()]
    assert symbols
    assert [name for name in symbols if f"d2_deformable::{target}::" not in name] == []
