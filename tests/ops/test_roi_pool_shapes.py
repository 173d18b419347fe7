"""RoI pooling in the shapes by which the CPU selects how to divide its work: blocks of channels,
planes, tiles, channels-last maps, and each instruction set."""

import os
import subprocess
import sys

import pytest
import torch

import reference
from d2_deformable.ops import deform_roi_align, deform_roi_pool, ps_roi_pool

DTYPES = [torch.float64, torch.float32]


def make_inputs(
    images=2, rois=6, top_channels=4, group_size=1, classes=0, parts=(3, 3), size=(13, 9), box=0.4
) -> tuple:
    """Map, RoIs in image pixels at scale 1/4, and an offset or None, all exact in float32.

    The size of RoIs is about `box` of the map's. Some reach beyond it; images are in any order.
    """
    image = torch.randn(images, top_channels * group_size**2, *size)
    map_size = 4 * torch.tensor([size[1], size[0]]).float()
    corner = (torch.rand(rois, 2) * 1.2 - 0.2) * map_size
    sides = torch.rand(rois, 2) * 2 * box * map_size
    boxes = torch.cat([torch.randint(images, (rois, 1)), corner, corner + sides], dim=1)
    offset = torch.randn(rois, 2 * classes, *parts) if classes else None
    return image, boxes, offset


def values_and_gradients(function, dtype, image, rois, offset, **arguments) -> list:
    leaves = [
        t.detach().to(dtype, copy=True).requires_grad_() for t in (image, offset) if t is not None
    ]
    output = function(leaves[0], rois.to(dtype), *leaves[1:], **arguments)
    weights = torch.cos(torch.arange(output.numel())).to(dtype)
    weights[::5] = 0  # kernels skip zero gradients, and no others
    total = (output * weights.view(output.shape)).sum()
    return [output.detach(), *torch.autograd.grad(total, leaves)]


LARGE = (90, 100)  # so large that only one vector of channels fits in the cache
CASES = {
    "class per channel": ({"top_channels": 5, "classes": 5, "rois": 37, "size": (9, 7)}, {}),
    "class per channel and group": (
        {"top_channels": 3, "classes": 3, "group_size": 3},
        {"group_size": 3},
    ),
    "class per channel, no two sizes equal": (
        {"images": 3, "top_channels": 2, "classes": 2, "group_size": 2, "parts": (2, 4)},
        {"output_size": (5, 3), "group_size": 2, "samples_per_part": 3, "gamma": 0.3},
    ),
    "class per channel, wide bins": (
        {"top_channels": 2, "classes": 2, "size": (60, 70)},
        {"output_size": 2},
    ),
    "classes of some channels": ({"top_channels": 21, "classes": 3}, {}),
    "several blocks": ({"top_channels": 37, "size": LARGE, "rois": 20}, {}),
    "several blocks with offsets": ({"top_channels": 37, "classes": 1, "size": LARGE}, {}),
    "several blocks per class": (
        {"top_channels": 40, "classes": 2, "size": LARGE, "parts": (2, 5)},
        {},
    ),
    "several classes per block, several blocks": (
        {"top_channels": 30, "classes": 10, "size": LARGE},
        {},
    ),
    "few bins on a large map": ({"size": LARGE, "rois": 3, "box": 0.1}, {"output_size": 2}),
    "many bins on a small map": ({"size": (3, 2), "rois": 40}, {}),
    "bins far larger than samples": (
        {"size": (40, 50), "box": 0.5},
        {"output_size": 1, "samples_per_part": 2},
    ),
    "bins far smaller than samples": (
        {"box": 0.05, "classes": 1},
        {"output_size": 7, "samples_per_part": 5},
    ),
    **{
        f"{samples} samples": ({"classes": 2}, {"samples_per_part": samples})
        for samples in range(1, 6)
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes, arguments", CASES.values(), ids=CASES)
def test_deform_roi_pool_equals_reference(sizes, arguments, dtype, assert_close):
    inputs = make_inputs(**sizes)
    arguments = {"output_size": 3, "spatial_scale": 0.26, **arguments}
    actual = values_and_gradients(deform_roi_pool, dtype, *inputs, **arguments)
    expected = values_and_gradients(reference.deform_roi_pool, torch.float64, *inputs, **arguments)
    assert_close(actual, [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling_ratio", [0, 3])
@pytest.mark.parametrize(
    "sizes",
    [{"top_channels": 21, "rois": 3}, {"top_channels": 16, "size": (30, 40), "rois": 2}],
    ids=["ragged channels", "wide bins"],
)
def test_deform_roi_align_equals_reference(sizes, sampling_ratio, dtype, assert_close):
    inputs = make_inputs(**sizes, classes=1)
    arguments = {"output_size": 3, "spatial_scale": 0.26, "sampling_ratio": sampling_ratio}
    actual = values_and_gradients(deform_roi_align, dtype, *inputs, **arguments)
    expected = values_and_gradients(reference.deform_roi_align, torch.float64, *inputs, **arguments)
    assert_close(actual, [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"top_channels": 21, "size": LARGE, "box": 0.1},
        {"size": (3, 2), "rois": 40},
        {"images": 3, "top_channels": 21, "box": 0.8},
    ],
    ids=["several blocks", "many bins on a small map", "large RoIs"],
)
def test_ps_roi_pool_equals_reference(sizes, dtype, assert_close):
    inputs = make_inputs(**sizes, group_size=3)
    # No edge of a bin is a whole number, where rounding would decide about a row of pixels.
    arguments = {"output_size": 3, "spatial_scale": 0.2617}
    actual = values_and_gradients(ps_roi_pool, dtype, *inputs, **arguments)
    expected = values_and_gradients(reference.ps_roi_pool, torch.float64, *inputs, **arguments)
    assert_close(actual, [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize(
    "top_channels, classes, group_size",
    [(32, 0, 1), (32, 2, 1), (33, 1, 1), (32, 4, 1), (5, 1, 3), (5, 5, 3)],
)
def test_channels_last(top_channels, classes, group_size):
    """Maps are read in place or copied: results are equal to the bit, in the layout of the map."""
    image, rois, offset = make_inputs(
        top_channels=top_channels, classes=classes, group_size=group_size
    )
    arguments = {"output_size": 3, "spatial_scale": 0.26, "group_size": group_size}
    expected = values_and_gradients(
        deform_roi_pool, torch.float32, image, rois, offset, **arguments
    )
    image = image.contiguous(memory_format=torch.channels_last)
    actual = values_and_gradients(deform_roi_pool, torch.float32, image, rois, offset, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual[:2])


@pytest.mark.parametrize(
    "name", ["class per channel", "several blocks per class", "few bins on a large map"]
)
def test_results_do_not_depend_on_threads(name, threads):
    sizes, arguments = CASES[name]
    inputs = make_inputs(**{**sizes, "rois": 60})
    arguments = {"output_size": 3, "spatial_scale": 0.26, **arguments}
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(values_and_gradients(deform_roi_pool, torch.float32, *inputs, **arguments))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("classes", [0, 1, 5])
def test_pixels_between_and_beside_samples_do_not_matter(classes):
    """No sample touches the infinite pixels, though kernels read whole vectors and weigh with 0."""
    image, _, _ = make_inputs(images=1, top_channels=5, size=(12, 24))
    rois = torch.tensor([[0.0, 2, 2, 10, 10]])
    offset = torch.zeros(1, 2 * classes, 1, 1) if classes else None
    arguments = {"output_size": 1, "spatial_scale": 1.0, "samples_per_part": 2}
    # Samples are at 1.5 and 5.5: they touch pixels 1, 2, 5 and 6.
    expected = values_and_gradients(
        deform_roi_pool, torch.float32, image, rois, offset, **arguments
    )
    untouched = torch.ones(12, 24, dtype=torch.bool)
    untouched[[[1], [2], [5], [6]], [1, 2, 5, 6]] = False
    image[..., untouched] = float("inf")
    actual = values_and_gradients(deform_roi_pool, torch.float32, image, rois, offset, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability):
    """Run the tests above, which used the machine's best instruction set, with a lesser one."""
    best = torch.backends.cpu.get_cpu_capability()
    if best == "DEFAULT" or best.lower() == capability:
        pytest.skip(f"this machine's best instruction set is {best}")
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    doubles = " or float64" if capability == "default" else ""  # vectors of two
    done = subprocess.run(
        [*again, "-k", f"float32{doubles} or channels_last or beside"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
