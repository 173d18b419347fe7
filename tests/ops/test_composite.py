"""The operators as standard tensor operations equal the kernels and the slow reference."""

import pytest
from ops import test_deform_conv2d as conv
from ops import test_deform_roi_pool as deform_pool
from ops import test_ps_roi_pool as ps_pool

import reference
from d2_deformable import ops
from d2_deformable.ops import _composite as composite


def composite_conv(input, offset, weight, bias=None, mask=None, border="zero", **geometry):
    order = [geometry[name] for name in ("stride", "padding", "dilation")]
    return composite.deform_conv2d(input, offset, weight, bias, *order, mask, border)


def pair_of_bins(output_size, **arguments) -> dict:
    return {**arguments, "output_size": reference.pair(output_size)}


@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize("case", conv.CASES)
def test_deform_conv2d(case, border, device, assert_close):
    inputs = case.inputs(device=device)
    results = [
        conv.values_and_gradients(function, inputs, **case.geometry(), border=border)
        for function in (composite_conv, ops.deform_conv2d, reference.deform_conv2d)
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("sizes, arguments", deform_pool.CASES)
def test_deform_roi_pool(sizes, arguments, with_offset, round_rois, device, assert_close):
    image, rois, offset = deform_pool.make_inputs(**sizes, device=device)
    arguments = pair_of_bins(spatial_scale=0.26, round_rois=round_rois, **arguments)
    results = [
        deform_pool.values_and_gradients(
            function, image, rois, offset if with_offset else None, **arguments
        )
        for function in (
            composite.deform_roi_pool,
            ops.deform_roi_pool,
            reference.deform_roi_pool,
        )
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("bins", [(3, 2), (1, 1), (7, 7)])
def test_ps_roi_pool(bins, round_rois, device, assert_close):
    image, rois = ps_pool.make_inputs(bins=bins, rois=9, device=device)
    arguments = {"output_size": bins, "spatial_scale": 0.26, "round_rois": round_rois}
    results = [
        ps_pool.value_and_gradient(function, image, rois, **arguments)
        for function in (composite.ps_roi_pool, ops.ps_roi_pool, reference.ps_roi_pool)
    ]
    assert_close(results[0], results[1])
    assert_close(results[0], results[2])
