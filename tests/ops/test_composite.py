"""The operators made of standard tensor operations equal the kernels and the slow reference."""

from dataclasses import replace

import pytest
import torch
from ops import test_deform_conv2d as conv
from ops import test_deform_roi_align as align
from ops import test_deform_roi_pool as deform_pool
from ops import test_ps_roi_pool as ps_pool

import reference
from d2_deformable import ops
from d2_deformable.ops import _composite as composite

CASE = conv.Case()
BORDERS = pytest.mark.parametrize("border", ["zero", "legacy"])
ROUND_ROIS = pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
WILD = [float("nan"), float("inf"), -float("inf"), 1e30, 3e9]


def composite_conv(input, offset, weight, bias=None, mask=None, border="zero", **geometry):
    order = [geometry[name] for name in ("stride", "padding", "dilation")]
    return composite.deform_conv2d(input, offset, weight, bias, *order, mask, border)


def check_conv(inputs, case=CASE, border="zero", others=(ops.deform_conv2d,)):
    """Check that values and gradients equal those of the other implementations.

    The explicit gradients of the composite's own backward must equal them too.
    """
    arguments = {**case.geometry(), "border": border}
    results = [
        conv.values_and_gradients(function, inputs, **arguments)
        for function in (composite_conv, *others)
    ]
    for expected in results[1:]:
        torch.testing.assert_close(results[0], expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    backward = conv.backward_arguments(case, inputs, border)
    actual = composite.deform_conv2d_backward(*backward)
    expected = conv.BACKWARD(*backward)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@BORDERS
@pytest.mark.parametrize("case", conv.CASES)
def test_deform_conv2d(case, border, device):
    others = (ops.deform_conv2d, reference.deform_conv2d)
    check_conv(case.inputs(device=device), case, border, others)


@BORDERS
def test_deform_conv2d_at_whole_coordinates(border, device):
    """Derivatives there are one-sided."""
    inputs = CASE.inputs(device=device)
    inputs["offset"] = inputs["offset"].detach().round().requires_grad_()
    check_conv(inputs, border=border)


@BORDERS
@pytest.mark.parametrize("value", WILD)
def test_deform_conv2d_of_wild_offsets(border, value, device):
    inputs = CASE.inputs(device=device)
    offset = inputs["offset"].detach().clone()
    offset[:, ::3] = value
    check_conv({**inputs, "offset": offset.requires_grad_()}, border=border)


@BORDERS
def test_deform_conv2d_of_an_infinite_pixel(border, device):
    inputs = CASE.inputs(device=device)
    with torch.no_grad():
        inputs["input"][0, 0, 0, 0] = float("inf")
    check_conv(inputs, border=border)


def test_deform_conv2d_of_nothing(device):
    case = replace(CASE, images=0)
    check_conv(case.inputs(device=device), case)


def check_deform_pool(inputs, others=(ops.deform_roi_pool,), **arguments):
    image, rois, offset = inputs
    arguments = {
        "group_size": 1,
        "samples_per_part": 4,
        "gamma": 0.1,
        **arguments,
        "output_size": reference.pair(arguments["output_size"]),
    }
    results = [
        deform_pool.values_and_gradients(function, *inputs, **arguments)
        for function in (composite.deform_roi_pool, *others)
    ]
    for expected in results[1:]:
        torch.testing.assert_close(results[0], expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    grad = torch.randn_like(results[0][0])
    backward = (grad, image.detach(), rois, None if offset is None else offset.detach())
    actual = composite.deform_roi_pool_backward(*backward, **arguments)
    expected = deform_pool.BACKWARD(*backward, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


@ROUND_ROIS
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("sizes, arguments", deform_pool.CASES)
def test_deform_roi_pool(sizes, arguments, with_offset, round_rois, device):
    image, rois, offset = deform_pool.make_inputs(**sizes, device=device)
    inputs = (image, rois, offset if with_offset else None)
    others = (ops.deform_roi_pool, reference.deform_roi_pool)
    check_deform_pool(inputs, others, spatial_scale=0.26, round_rois=round_rois, **arguments)


def edge_rois(device, wild=None) -> torch.Tensor:
    """Boxes with corners at halves and integers, empty and inverted boxes, one outside the map."""
    rois = [
        [0, 4, 4, 28, 28],
        [1, 2.5, -2.5, 2.5, 14.5],
        [0, 0.5, 1.5, 36, 52],
        [1, 0, 0, 0, 0],
        [0, 20, 20, 10, 10],
        [1, -100, -100, -50, -50],
    ]
    rois = torch.tensor(rois, dtype=torch.float64, device=device)
    if wild is not None:
        rois[1, 2] = rois[3, 4] = wild
    return rois


@ROUND_ROIS
@pytest.mark.parametrize("value", [None, *WILD])
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
def test_deform_roi_pool_at_edges(with_offset, value, round_rois, device):
    image, _, offset = deform_pool.make_inputs(images=2, rois=6, classes=2, device=device)
    rois = edge_rois(device, None if with_offset else value)
    offset = (2 * offset.detach()).round()
    if value is not None:
        offset[:, ::3] = value
    inputs = (image, rois, offset.requires_grad_() if with_offset else None)
    check_deform_pool(inputs, output_size=3, spatial_scale=0.25, round_rois=round_rois)


def test_deform_roi_pool_of_an_infinite_pixel(device):
    inputs = deform_pool.make_inputs(device=device)
    with torch.no_grad():
        inputs[0][0, 0, 3, 3] = float("inf")
    check_deform_pool(inputs, output_size=3, spatial_scale=0.25, round_rois=True)


@pytest.mark.parametrize("images", [0, 2])
def test_deform_roi_pool_of_nothing(images, device):
    inputs = deform_pool.make_inputs(images=images, rois=0, group_size=3, device=device)
    check_deform_pool(inputs, output_size=3, spatial_scale=0.25, group_size=3, round_rois=True)


def check_align(inputs, others=(ops.deform_roi_align,), **arguments):
    image, rois, offset = inputs
    arguments = {"sampling_ratio": 0, "gamma": 0.1, **arguments}
    arguments["output_size"] = reference.pair(arguments["output_size"])
    results = [
        align.values_and_gradients(function, *inputs, **arguments)
        for function in (composite.deform_roi_align, *others)
    ]
    for expected in results[1:]:
        torch.testing.assert_close(results[0], expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    grad = torch.randn_like(results[0][0])
    backward = (grad, image.detach(), rois, None if offset is None else offset.detach())
    actual = composite.deform_roi_align_backward(*backward, **arguments)
    expected = align.BACKWARD(*backward, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


SAMPLING_RATIO = pytest.mark.parametrize("sampling_ratio", [0, 1, 3])


@SAMPLING_RATIO
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("images", [1, 3])
def test_deform_roi_align(images, with_offset, sampling_ratio, device):
    image, rois, offset = align.make_inputs(images=images, bins=(2, 4), device=device)
    inputs = (image, rois, offset if with_offset else None)
    others = (ops.deform_roi_align, reference.deform_roi_align)
    arguments = {"output_size": (2, 4), "spatial_scale": 0.25, "gamma": 0.3}
    check_align(inputs, others, sampling_ratio=sampling_ratio, **arguments)


@SAMPLING_RATIO
@pytest.mark.parametrize("value", [None, *WILD])
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
def test_deform_roi_align_at_edges(with_offset, value, sampling_ratio, device):
    image, _, offset = align.make_inputs(rois=6, device=device)
    rois = edge_rois(device, None if with_offset else value)
    offset = (2 * offset.detach()).round()
    if value is not None:
        offset[:, ::2] = value
    inputs = (image, rois, offset.requires_grad_() if with_offset else None)
    arguments = {"output_size": 3, "spatial_scale": 0.25, "gamma": 0.25}
    check_align(inputs, sampling_ratio=sampling_ratio, **arguments)


@pytest.mark.parametrize("images", [0, 2])
def test_deform_roi_align_of_nothing(images, device):
    inputs = align.make_inputs(images=images, rois=0, device=device)
    check_align(inputs, output_size=3, spatial_scale=0.25)


def check_ps_pool(image, rois, others=(ops.ps_roi_pool,), **arguments):
    results = [
        ps_pool.value_and_gradient(function, image, rois, **arguments)
        for function in (composite.ps_roi_pool, *others)
    ]
    for expected in results[1:]:
        torch.testing.assert_close(results[0], expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(results[0][0])
    arguments = {**arguments, "input_size": list(image.shape), "channels_last": False}
    actual = composite.ps_roi_pool_backward(grad, rois, **arguments)
    expected = ps_pool.BACKWARD(grad, rois, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@ROUND_ROIS
@pytest.mark.parametrize("bins", [(3, 2), (1, 1), (7, 7)])
def test_ps_roi_pool(bins, round_rois, device):
    image, rois = ps_pool.make_inputs(bins=bins, rois=9, device=device)
    others = (ops.ps_roi_pool, reference.ps_roi_pool)
    check_ps_pool(image, rois, others, output_size=bins, spatial_scale=0.26, round_rois=round_rois)


@ROUND_ROIS
@pytest.mark.parametrize("value", [None, *WILD])
def test_ps_roi_pool_at_edges(value, round_rois, device):
    image, _ = ps_pool.make_inputs(images=2, device=device)
    rois = edge_rois(device, value)
    check_ps_pool(image, rois, output_size=(3, 2), spatial_scale=0.25, round_rois=round_rois)


@pytest.mark.parametrize("images", [0, 2])
def test_ps_roi_pool_of_nothing(images, device):
    image, rois = ps_pool.make_inputs(images=images, rois=0, device=device)
    check_ps_pool(image, rois, output_size=(3, 2), spatial_scale=0.25, round_rois=True)


def test_small_bins_of_a_large_map_are_precise_in_float32(device):
    """Running sums of 10^6 pixels of about 100 would lose all decimal places."""
    image = 100 + torch.randn(1, 4, 1000, 1000, device=device)
    rois = torch.tensor([[0.0, 990, 990, 994, 994]], device=device)
    arguments = {"output_size": (2, 2), "spatial_scale": 1.0, "round_rois": True}
    actual = composite.ps_roi_pool(image, rois, **arguments)
    torch.testing.assert_close(actual, ops.ps_roi_pool(image, rois, **arguments))
