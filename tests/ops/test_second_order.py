"""Second-order gradients against those of the slow reference, and numerically."""

import pytest
import torch
from ops import test_deform_conv2d as conv
from ops import test_deform_roi_align as align
from ops import test_deform_roi_pool as deform_pool
from ops import test_ps_roi_pool as ps_pool
from torch.autograd import gradcheck, gradgradcheck

import reference
from d2_deformable import ops

BORDERS = pytest.mark.parametrize("border", ["zero", "legacy"])


def waves(tensor: torch.Tensor) -> torch.Tensor:
    """A number that depends on every element, each with its own weight."""
    weights = torch.cos(torch.arange(tensor.numel(), device=tensor.device)).to(tensor.dtype)
    return (weights.view(tensor.shape) * tensor * tensor).sum()


def derivatives(function, leaves, order=2) -> list:
    """Gradients of `waves` of the function's value with respect to all leaves, up to `order`."""
    results, total = [], waves(function(*leaves))
    for last in reversed(range(order)):
        # Gradients that do not exist, such as a third derivative with respect to a weight, are
        # zero.
        gradients = torch.autograd.grad(
            total, leaves, create_graph=last > 0, materialize_grads=True
        )
        results.extend(gradients)
        total = sum(waves(gradient) for gradient in gradients)
    return results


@BORDERS
@pytest.mark.parametrize("case", conv.CASES)
def test_deform_conv2d_equals_reference(case, border, device, assert_close):
    inputs = case.inputs(device=device)
    results = []
    for function in (ops.deform_conv2d, reference.deform_conv2d):

        def value(*leaves, function=function):
            tensors = dict(zip(inputs, leaves, strict=True))
            return function(**tensors, **case.geometry(), border=border)

        results.append(derivatives(value, list(inputs.values())))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("sizes, arguments", deform_pool.CASES)
def test_deform_roi_pool_equals_reference(sizes, arguments, with_offset, device, assert_close):
    image, rois, offset = deform_pool.make_inputs(**sizes, device=device)
    arguments = {"spatial_scale": 0.26, **arguments}
    leaves = [image, offset] if with_offset else [image]
    results = [
        derivatives(
            lambda image, *offset, function=function: function(image, rois, *offset, **arguments),
            leaves,
        )
        for function in (ops.deform_roi_pool, reference.deform_roi_pool)
    ]
    assert_close(*results)


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("arguments", align.CASES)
def test_deform_roi_align_equals_reference(arguments, with_offset, device, assert_close):
    bins = reference.pair(arguments["output_size"])
    image, rois, offset = align.make_inputs(bins=bins, device=device)
    arguments = {"spatial_scale": 0.25, **arguments}
    leaves = [image, offset] if with_offset else [image]
    results = [
        derivatives(
            lambda image, *offset, function=function: function(image, rois, *offset, **arguments),
            leaves,
            order=3,
        )
        for function in (ops.deform_roi_align, reference.deform_roi_align)
    ]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bins", [(3, 2), (7, 7)])
def test_ps_roi_pool_equals_reference(bins, device, assert_close):
    image, rois = ps_pool.make_inputs(bins=bins, device=device)
    arguments = {"output_size": bins, "spatial_scale": 0.26, "round_rois": False}
    results = [
        derivatives(lambda image, function=function: function(image, rois, **arguments), [image])
        for function in (ops.ps_roi_pool, reference.ps_roi_pool)
    ]
    assert_close(*results)


def test_third_derivatives(device):
    case = conv.Case(images=1, channels=2, size=(4, 3), out_channels=2, kernel=(2, 1))
    inputs = case.inputs(device=device)
    image, _, offset = deform_pool.make_inputs(images=1, rois=2, size=(5, 4), device=device)
    rois = image.new_tensor([[0, 1.3, 2.2, 14.1, 17.3], [0, 3.2, -2.3, 9.4, 8.8]])
    pool = {"output_size": 2, "spatial_scale": 0.26, "samples_per_part": 2}
    results = [
        [
            *derivatives(
                lambda *leaves, module=module: module.deform_conv2d(
                    **dict(zip(inputs, leaves, strict=True)), **case.geometry()
                ),
                list(inputs.values()),
                order=3,
            ),
            *derivatives(
                lambda image, offset, module=module: module.deform_roi_pool(
                    image, rois, offset, **pool
                ),
                [image, offset],
                order=3,
            ),
        ]
        for module in (ops, reference)
    ]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-7)


@BORDERS
@pytest.mark.parametrize("mask", [False, True], ids=["plain", "modulated"])
def test_deform_conv2d_gradgradcheck(mask, border, device):
    case = conv.Case(
        images=2, channels=2, size=(3, 2), out_channels=2, kernel=(2, 1), padding=(1, 0),
        stride=(2, 1), dilation=(1, 1), groups=2, offset_groups=2, mask=mask, bias=mask,
    )  # fmt: skip
    inputs = case.inputs(device=device, spread=1.0)
    assert gradgradcheck(
        lambda *leaves: ops.deform_conv2d(
            **dict(zip(inputs, leaves, strict=True)), **case.geometry(), border=border
        ),
        tuple(inputs.values()),
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
def test_deform_roi_pool_gradgradcheck(with_offset, device):
    image, rois, offset = deform_pool.make_inputs(
        images=2, rois=2, top_channels=2, group_size=2, classes=2, parts=(2, 1), size=(3, 2),
        device=device,
    )  # fmt: skip
    arguments = {"output_size": (2, 1), "spatial_scale": 0.09, "group_size": 2}
    arguments["samples_per_part"] = 2
    assert gradgradcheck(
        lambda image, *offset: ops.deform_roi_pool(image, rois, *offset, **arguments),
        (image, offset) if with_offset else (image,),
        eps=1e-7,
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_deform_roi_align_gradgradcheck(sampling_ratio, device):
    image, rois, offset = align.make_inputs(
        rois=2, channels=2, bins=(2, 1), size=(3, 2), device=device
    )
    arguments = {"output_size": (2, 1), "spatial_scale": 0.06, "sampling_ratio": sampling_ratio}
    assert gradgradcheck(
        lambda image, offset: ops.deform_roi_align(image, rois, offset, **arguments),
        (image, offset),
        eps=1e-7,
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


def test_ps_roi_pool_gradgradcheck(device):
    image, rois = ps_pool.make_inputs(images=2, rois=3, top_channels=1, size=(4, 3), device=device)
    assert gradgradcheck(
        lambda image: ops.ps_roi_pool(image, rois, output_size=(3, 2), spatial_scale=0.09),
        (image,),
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


def test_forward_mode(device):
    """The composites compute values that have tangents."""
    case = conv.Case(images=1, channels=2, size=(3, 3), out_channels=2)
    inputs = case.inputs(device=device)
    image, rois, offset = deform_pool.make_inputs(
        images=1, rois=2, top_channels=1, group_size=2, size=(4, 3), device=device
    )
    pool = {"output_size": 2, "spatial_scale": 0.09}

    def conv_value(*leaves):
        return ops.deform_conv2d(**dict(zip(inputs, leaves, strict=True)), **case.geometry())

    def deform_pool_value(image, offset):
        return ops.deform_roi_pool(image, rois, offset, group_size=2, **pool)

    def align_value(image, offset):
        return ops.deform_roi_align(image, rois, offset[:, :, :2, :2], **pool)

    def ps_pool_value(image):
        return ops.ps_roi_pool(image, rois, **pool)

    how = {"check_forward_ad": True, "fast_mode": True}
    how["nondet_tol"] = 0.0 if device.type == "cpu" else 1e-12
    assert gradcheck(conv_value, tuple(inputs.values()), **how)
    assert gradcheck(deform_pool_value, (image, offset), **how)
    assert gradcheck(align_value, (image, offset), **how)
    assert gradcheck(ps_pool_value, (image,), **how)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(dtype, autocast, device):
    """Second-order gradients have the types of the tensors that they are taken for."""
    case = conv.Case(groups=2, offset_groups=2)
    inputs = case.inputs(torch.float32, device)
    if not autocast:
        halves = {name: inputs[name].detach().to(dtype) for name in ("input", "weight", "bias")}
        inputs.update({name: half.requires_grad_() for name, half in halves.items()})
    full = {name: tensor.detach().float().requires_grad_() for name, tensor in inputs.items()}
    with torch.autocast(device.type, dtype=dtype, enabled=autocast):
        actual = derivatives(
            lambda *leaves: ops.deform_conv2d(
                **dict(zip(inputs, leaves, strict=True)), **case.geometry()
            ).float(),
            list(inputs.values()),
        )
    expected = derivatives(
        lambda *leaves: ops.deform_conv2d(
            **dict(zip(inputs, leaves, strict=True)), **case.geometry()
        ),
        list(full.values()),
    )
    leaves = 2 * list(inputs.values())
    for mine, other, leaf in zip(actual, expected, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        error = (mine.float() - other).norm() / other.norm().clamp(min=1e-6)
        assert error < 0.05


def test_first_gradients_keep_no_graph(device):
    """Only create_graph pays for second-order gradients."""
    inputs = conv.Case().inputs(device=device)
    output = ops.deform_conv2d(**inputs, **conv.Case().geometry())
    gradients = torch.autograd.grad(output.sum(), list(inputs.values()))
    assert not any(gradient.requires_grad for gradient in gradients)
