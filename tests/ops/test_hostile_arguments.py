"""Arguments of any kind end in a result or an error: the cases of tests/fuzz/operators.py, and what
they found."""

import time
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_deformable import ops
from d2_deformable.ops._checks import ArgumentError
from fuzz import operators

RAW = torch.ops.d2_deformable
ALIGN = {"output_size": 1, "spatial_scale": 1.0}


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_arguments(examples):
    @settings(max_examples=examples, database=None, deadline=None, derandomize=True)
    @given(st.binary(min_size=20, max_size=150))
    def check(data):
        operators.one_input(data)

    check()


def test_the_fuzz_target_finds_a_wrong_result(monkeypatch):
    right = ops.ps_roi_pool
    monkeypatch.setattr(ops, "ps_roi_pool", lambda *a, **k: right(*a, **k)[..., :0])
    with pytest.raises((AssertionError, RuntimeError)):
        for data in operators.SEEDS:
            operators.one_input(data)


def test_the_fuzz_target_finds_an_error_of_another_kind(monkeypatch):
    def fail(*args, **keywords):
        raise KeyError("rois")

    monkeypatch.setattr(ops, "deform_conv2d", fail)
    with pytest.raises((AssertionError, KeyError), match="rois"):
        for data in operators.SEEDS:
            operators.one_input(data)


def test_a_convolution_of_no_images_has_bounded_sizes():
    channels = 2**56
    weight = torch.ones(1).expand(1, channels, 1, 1)
    with pytest.raises(RuntimeError, match="negative or too large"):
        ops.deform_conv2d(torch.empty(0, channels, 1, 1), torch.empty(0, 2, 1, 1), weight)
    with pytest.raises(RuntimeError, match="negative or too large"):
        ops.deform_conv2d(
            torch.ones(1, 1, 2, 2),
            torch.empty(1, 2, 2, 2),
            weight.view(-1).expand(channels)[:1].expand(channels, 1, 1, 1),
        )


@pytest.mark.parametrize("sides", [(2**62, 2), (2, 2**31), (2**40, 1)])
def test_parts_of_no_rois_have_bounded_sizes(sides):
    offset = torch.empty(0).as_strided((0, 2, *sides), (0, 0, 0, 0))
    sizes = {**ALIGN, "output_size": [1, 1]}
    more = {"group_size": 1, "samples_per_part": 4, "gamma": 0.1, "round_rois": True}
    image, rois, grad = torch.ones(1, 1, 4, 4), torch.empty(0, 5), torch.empty(0, 1, 1, 1)
    with pytest.raises(RuntimeError, match="parts|part_h, part_w .* below 2.24"):
        RAW.deform_roi_pool(image, rois, offset, **sizes, **more)
    with pytest.raises(RuntimeError, match="part_h, part_w .* below 2.24"):
        RAW.deform_roi_pool_backward(grad, image, rois, offset, **sizes, **more)


@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.deform_roi_align])
def test_results_larger_than_any_memory_are_refused(function):
    rois = torch.zeros(1, 5).expand(100_000, 5)
    with pytest.raises(RuntimeError, match="output .* too large"):
        function(torch.ones(1, 1, 2, 2), rois, output_size=2**23, spatial_scale=1.0)


@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.deform_roi_align, ops.ps_roi_pool])
def test_no_rois_need_no_memory_for_bins(function):
    """Also in forward mode, where standard operations compute the result."""
    bins = 2**12 if function is not ops.ps_roi_pool else 2
    image, rois = torch.ones(1, 4, 3, 3), torch.empty(0, 5)
    run = partial(function, rois=rois, output_size=bins, spatial_scale=1.0)
    channels = 4 if function is not ops.ps_roi_pool else 1
    assert run(image).shape == (0, channels, bins, bins)
    assert torch.func.jvp(run, (image,), (image,))[1].shape == (0, channels, bins, bins)
    for wrong in (2**24, 2**31, 10**30):
        with pytest.raises(ArgumentError, match="below 2.24"):
            function(image, rois, output_size=wrong, spatial_scale=1.0)


def test_many_bins_of_a_wide_map_take_little_memory():
    """A bin of RoIAlign may read the whole map, but not every bin's pixels are kept at once."""
    image, rois = torch.arange(20000.0).view(1, 1, 1, -1), torch.tensor([[0, 0, 0, 20000.0, 1]])
    wide = ops.deform_roi_align(image, rois, output_size=(1, 2**20), spatial_scale=1.0)
    assert wide.shape == (1, 1, 1, 2**20)
    # Without kept lists the bins are the same.
    few = ops.deform_roi_align(image, rois, output_size=(2, 3), spatial_scale=1.0)
    many = ops.deform_roi_align(image, rois, output_size=(2, 6), spatial_scale=1.0)
    torch.testing.assert_close(many.unflatten(-1, (3, 2)).mean(-1), few, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("with_offset", [False, True])
def test_the_time_of_a_large_bin_grows_with_its_side(with_offset):
    """It took minutes when each pixel looked at every sample."""
    width = 2**18
    image = torch.ones(1, 1, 1, width, requires_grad=True)
    rois = torch.tensor([[0, 0.25, 0, width - 0.25, 1]])
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True) if with_offset else None
    begin = time.monotonic()
    output = ops.deform_roi_align(image, rois, offset, **ALIGN)
    output.sum().backward()
    assert time.monotonic() - begin < 5
    torch.testing.assert_close(output, torch.ones(1, 1, 1, 1), rtol=1e-3, atol=0)
    assert image.grad.sum().item() == pytest.approx(1, rel=1e-3)


def test_large_bins_are_weighted_as_small_ones_are():
    """A bin wider than a vector of pixels, of more and of fewer samples than pixels."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 1, 150, generator=random, dtype=torch.float64)
    rois = torch.tensor([[0, 3.3, 0, 141.9, 1]], dtype=torch.float64)
    for samples in (0, 7, 100, 1000):
        count = samples or 139
        at = 3.3 - 0.5 + (torch.arange(count, dtype=torch.float64) + 0.5) * (138.6 / count)
        low = at.floor().long()
        row = image.flatten()
        expected = (row[low] * (1 - (at - low)) + row[low + 1] * (at - low)).mean()
        output = ops.deform_roi_align(image, rois, **ALIGN, sampling_ratio=samples)
        torch.testing.assert_close(output.flatten()[0], expected)


@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.deform_roi_align, ops.ps_roi_pool])
def test_sides_of_no_images_are_bounded_in_forward_mode(function):
    image, rois = torch.empty(0, 1, 2**24, 8), torch.zeros(1, 5)
    with pytest.raises(ArgumentError, match="side of 2.24 or more"):
        torch.func.jvp(lambda image: function(image, rois, **ALIGN), (image,), (image,))


def test_third_derivatives_without_images():
    tensors = (torch.empty(0, 2, 5, 5), torch.empty(0, 18, 5, 5), torch.ones(2, 2, 3, 3))
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    total = ops.deform_conv2d(*leaves, padding=1).sum()
    for _ in range(3):
        gradients = torch.autograd.grad(total, leaves, create_graph=True)
        total = sum(gradient.square().sum() for gradient in gradients)
    assert all(gradient.shape == leaf.shape for gradient, leaf in zip(gradients, leaves))


@pytest.mark.parametrize("name", ["samples_per_part", "group_size"])
def test_numbers_of_the_pooling_are_bounded(name):
    with pytest.raises(ArgumentError, match="below 2.24"):
        ops.deform_roi_pool(torch.ones(1, 1, 2, 2), torch.zeros(1, 5), **ALIGN, **{name: 2**32})


def test_samples_of_roi_align_are_bounded():
    with pytest.raises(ArgumentError, match="sampling_ratio is 4294967296; expected at most 2.20"):
        ops.deform_roi_align(
            torch.ones(1, 1, 2, 2), torch.zeros(1, 5), **ALIGN, sampling_ratio=2**32
        )


@pytest.mark.parametrize("function", [ops.deform_roi_pool, ops.deform_roi_align, ops.ps_roi_pool])
def test_no_images_need_no_memory_for_rois(function):
    """Without elements, sides may be any; memory of the standard operations grows with them."""
    image, rois = torch.ones(1).expand(0, 4, 2**23, 8), torch.tensor([[0.0, 0, 0, 4, 4]])
    run = partial(function, rois=rois, output_size=2, spatial_scale=1.0)
    with pytest.raises(
        (IndexError, RuntimeError), match="no images|0 images|out of (range|bounds)"
    ):
        torch.func.jvp(run, (image,), (image,))
