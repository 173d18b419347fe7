"""Multiply-adds of the deformable operators, for the counters of fvcore and torch.

Importing this module registers the formulas with `torch.utils.flop_counter.FlopCounterMode`. fvcore
has no registry, so `flop_analysis` passes them to its `FlopCountAnalysis`. fvcore counts a
multiply-add as one, torch as two.

A deformable convolution costs the matrix multiply of a plain one, preceded by one bilinear sample
per input channel, tap and output position: 4 multiply-adds (5 with a mask). A bin of deformable RoI
pooling costs samples_per_part^2 such samples. Two things are not counted, as in the other formulas
of both counters: computing the 4 factors of a sample, which all channels of a group share, and pure
additions (plain PS-RoI pooling).
"""

from math import prod

import torch
from detectron2.structures import Boxes, Instances
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

CORNERS = 4
# Operators that both counters know. fvcore counts others (normalisation, upsampling), torch does
# not.
KINDS = {
    "conv": "convolutions",
    **dict.fromkeys(("linear", "addmm", "mm", "bmm", "matmul"), "matrix multiplies"),
    "deform_conv2d": "deformable convolutions",
    "deform_roi_pool": "deformable RoI pooling",
}


def conv_macs(weight_shape, output_shape) -> int:
    """Multiply-adds of a plain convolution, weight (C_out, C / groups, k_h, k_w)."""
    return output_shape[0] * prod(output_shape[2:]) * prod(weight_shape)


def sampling_macs(input_shape, weight_shape, output_shape, modulated: bool) -> int:
    """Multiply-adds of the bilinear samples of a deformable convolution."""
    samples = output_shape[0] * prod(output_shape[2:]) * prod(weight_shape[2:])
    return samples * input_shape[1] * (CORNERS + modulated)


def deform_conv2d_macs(input_shape, weight_shape, output_shape, modulated: bool = False) -> int:
    """Multiply-adds of `deform_conv2d`, without the convolution that predicts its offsets."""
    return conv_macs(weight_shape, output_shape) + sampling_macs(
        input_shape, weight_shape, output_shape, modulated
    )


def deform_roi_pool_macs(output_shape, samples_per_part: int) -> int:
    """Multiply-adds of `deform_roi_pool` with output (R, C / group_size^2, bins_h, bins_w)."""
    return prod(output_shape) * samples_per_part**2 * CORNERS


def flop_analysis(model, inputs: list[dict]) -> FlopCountAnalysis:
    """Make fvcore's counter of a Detectron2 model, with the deformable operators.

    Args:
        inputs: in Detectron2's input format.
    """
    images = tuple(x["image"] for x in inputs)
    analysis = FlopCountAnalysis(_Traceable(model, inputs), images)
    analysis.set_op_handle("d2_deformable::deform_conv2d", _deform_conv2d_handle)
    analysis.set_op_handle("d2_deformable::deform_roi_pool", _deform_roi_pool_handle)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


@torch.no_grad()
def count_macs(model, inputs: list[dict]) -> dict[str, int]:
    """Count the multiply-adds of one forward pass by kind, with fvcore.

    Returns:
        {"convolutions": ..., "total": ...}, including the convolutions that predict offsets.
    """
    macs = {}
    for operator, count in flop_analysis(model, inputs).by_operator().items():
        if operator in KINDS:
            macs[KINDS[operator]] = macs.get(KINDS[operator], 0) + int(count)
    return macs | {"total": sum(macs.values())}


@torch.no_grad()
def count_macs_by_torch(model, inputs: list[dict]) -> int:
    """Count the multiply-adds of one forward pass with torch's `FlopCounterMode`."""
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


class _Traceable(nn.Module):
    """A Detectron2 model as a function from tensors to tensors, which fvcore can trace.

    Detectron2's own adapter cannot be imported in version 0.5 without caffe2.
    """

    def __init__(self, model, inputs):
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *images):
        inputs = [x | {"image": image} for x, image in zip(self.inputs, images, strict=True)]
        return tuple(_tensors(self.model(inputs)))


def _tensors(output):
    """Yield all tensors in the output of a Detectron2 model."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Boxes):
        yield output.tensor
    elif isinstance(output, (dict, list, tuple, Instances)):
        if isinstance(output, Instances):
            output = output.get_fields()
        for value in output.values() if isinstance(output, dict) else output:
            yield from _tensors(value)


def _shape(value):
    """Sizes of a tensor of fvcore's traced graph."""
    return value.type().sizes()


def _deform_conv2d_handle(inputs, outputs):
    modulated = inputs[7].isCompleteTensor()
    return deform_conv2d_macs(_shape(inputs[0]), _shape(inputs[2]), _shape(outputs[0]), modulated)


def _deform_roi_pool_handle(inputs, outputs):
    # input, rois, offset, output_size, spatial_scale, group_size, samples_per_part, ...
    return deform_roi_pool_macs(_shape(outputs[0]), inputs[6].toIValue())


@register_flop_formula(torch.ops.d2_deformable.deform_conv2d)
def _deform_conv2d_flop(
    input, offset, weight, bias, stride, padding, dilation, mask, border, *, out_shape, **_
):
    return 2 * deform_conv2d_macs(input, weight, out_shape, mask is not None)


@register_flop_formula(torch.ops.d2_deformable.deform_conv2d_backward)
def _deform_conv2d_backward_flop(grad_output, input, offset, weight, mask, *_, **__):
    # Two matrix multiplies; sampling again, its transpose, and the derivatives of the samples with
    # respect to their positions.
    conv = conv_macs(weight, grad_output)
    return 2 * (2 * conv + 3 * sampling_macs(input, weight, grad_output, mask is not None))


@register_flop_formula(torch.ops.d2_deformable.deform_roi_pool)
def _deform_roi_pool_flop(*_, samples_per_part, out_shape, **__):
    return 2 * deform_roi_pool_macs(out_shape, samples_per_part)


@register_flop_formula(torch.ops.d2_deformable.deform_roi_pool_backward)
def _deform_roi_pool_backward_flop(grad_output, input, rois, offset, *, samples_per_part, **_):
    # The transpose of sampling and, with offsets, the derivatives with respect to the positions.
    return 2 * (1 + (offset is not None)) * deform_roi_pool_macs(grad_output, samples_per_part)
