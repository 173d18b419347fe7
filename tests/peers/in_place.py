"""A pytest plugin that puts this package's operators in the place of a peer's, in a process of its
own: `pytest -p peers.in_place`, with the peer's name in the variable PEER.

Where a peer's tests are for CUDA alone and there is no GPU, they get tensors on the CPU instead.
"""

import os
import sys
import types
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from d2_deformable import ops

RAW = torch.ops.d2_deformable
CALLS = []  # of our functions, by the test that runs
PEER = os.environ["PEER"]
WITHOUT_GPU = PEER != "vision" and not (ops.has_cuda() and torch.cuda.is_available())


def counted(function):
    def call(*args, **kwargs):
        CALLS.append(function.__name__)
        return function(*args, **kwargs)

    return call


# ---- torchvision ---------------------------------------------------------------------------------


@torch.jit.unused
def _public_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    CALLS.append("deform_conv2d")
    return ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _vision_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """The public function, whose errors the tests read; in TorchScript the operator itself."""
    if torch.jit.is_scripting():
        return torch.ops.d2_deformable.deform_conv2d(
            input, offset, weight, bias, stride, padding, dilation, mask, "zero"
        )
    return _public_deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


# Kernels of torchvision's operators. Its Python functions and autograd stay.


def _ps_roi_pool(input, rois, spatial_scale, *size):
    output = RAW.ps_roi_pool(
        input, rois, output_size=size, spatial_scale=spatial_scale, round_rois=True
    )
    return output, output.new_zeros(output.shape, dtype=torch.int32)  # its channel mapping


def _ps_roi_pool_backward(grad, rois, mapping, spatial_scale, bins_h, bins_w, *input_size):
    sizes = {"input_size": input_size, "output_size": [bins_h, bins_w]}
    arguments = {"spatial_scale": spatial_scale, "round_rois": True, "channels_last": False}
    return RAW.ps_roi_pool_backward(grad, rois, **sizes, **arguments)


def _align(rois, spatial_scale, bins_h, bins_w, sampling_ratio, aligned):
    """RoIs and arguments of deform_roi_align. Where theirs are not aligned, they lie half a pixel
    further, and are one pixel wide at least."""
    rois = rois if rois.dtype == torch.float64 else rois.float()
    if not aligned:
        first, last = (rois[:, 1:] + 0.5 / spatial_scale).split(2, dim=1)
        rois = torch.cat([rois[:, :1], first, last.maximum(first + 1 / spatial_scale)], dim=1)
    arguments = {"spatial_scale": spatial_scale, "sampling_ratio": max(sampling_ratio, 0)}
    return rois, None, {"output_size": [bins_h, bins_w], "gamma": 0.0, **arguments}


def _roi_align(input, rois, *arguments):
    *tensors, keywords = _align(rois, *arguments)
    return RAW.deform_roi_align(input, *tensors, **keywords)


def _roi_align_backward(grad, rois, spatial_scale, bins_h, bins_w, *sizes):
    *tensors, keywords = _align(rois, spatial_scale, bins_h, bins_w, *sizes[4:])
    return RAW.deform_roi_align_backward(grad, grad.new_zeros(sizes[:4]), *tensors, **keywords)[0]


def vision():
    import torchvision
    from torch.testing._internal import optests

    torchvision.ops.deform_conv2d = _vision_deform_conv2d
    sys.modules["torchvision.ops.deform_conv"].deform_conv2d = _vision_deform_conv2d
    library = torch.library.Library("torchvision", "IMPL")
    kernels = {"ps_roi_pool": _ps_roi_pool, "_ps_roi_pool_backward": _ps_roi_pool_backward}
    kernels |= {"roi_align": _roi_align, "_roi_align_backward": _roi_align_backward}
    for device in ("CPU", "CUDA") if ops.has_cuda() else ("CPU",):
        for name, kernel in kernels.items():
            library.impl(name, counted(kernel), device)
    LIBRARIES.append(library)
    # The tests that torchvision generates check operators of a namespace.
    generate = optests.generate_opcheck_tests
    optests.generate_opcheck_tests = lambda **arguments: generate(
        **{**arguments, "namespaces": ["d2_deformable"]}
    )


LIBRARIES = []  # registrations live as long as they


# ---- Detectron2 ----------------------------------------------------------------------------------


def detectron2():
    import detectron2.layers.deform_conv as theirs

    def deform_conv(
        input, offset, weight, stride, padding, dilation, groups, deformable_groups, *_
    ):
        return ops.deform_conv2d(input, offset, weight, None, stride, padding, dilation)

    def modulated_deform_conv(
        input, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups
    ):
        return ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)

    theirs.deform_conv = counted(deform_conv)
    theirs.modulated_deform_conv = counted(modulated_deform_conv)


# ---- mmcv ----------------------------------------------------------------------------------------


class Ext(types.ModuleType):
    """mmcv's compiled module."""

    def __getattr__(self, name):
        if name in vars(Kernels):
            return counted(getattr(Kernels, name))

        def missing(*args, **kwargs):
            raise NotImplementedError(f"mmcv._ext.{name}: not an operator of d2_deformable")

        if name.startswith("__"):
            raise AttributeError(name)
        return missing


class Kernels:
    """Its functions that are ours. They write their results into arguments."""

    @staticmethod
    def deform_conv_forward(input, weight, offset, output, columns, ones, **sizes):
        output.copy_(RAW.deform_conv2d(input, offset, weight, None, *_v1(sizes), None, "zero"))

    @staticmethod
    def deform_conv_backward_input(
        input, offset, grad_output, grad_input, grad_offset, weight, columns, **sizes
    ):
        gradients = _conv_backward(grad_output, input, offset, weight, None, _v1(sizes))
        grad_input.copy_(gradients[0])
        grad_offset.copy_(gradients[1])

    @staticmethod
    def deform_conv_backward_parameters(
        input, offset, grad_output, grad_weight, columns, ones, scale, **sizes
    ):
        # It needs the weight for its shape alone.
        gradients = _conv_backward(grad_output, input, offset, grad_weight, None, _v1(sizes))
        grad_weight.add_(gradients[2], alpha=scale)

    @staticmethod
    def modulated_deform_conv_forward(
        input, weight, bias, ones, offset, mask, output, columns, with_bias, **sizes
    ):
        bias = bias if with_bias else None
        output.copy_(RAW.deform_conv2d(input, offset, weight, bias, *_v2(sizes), mask, "zero"))

    @staticmethod
    def modulated_deform_conv_backward(*tensors, with_bias, **sizes):
        input, weight, _, _, offset, mask, _, *gradients, grad_output = tensors
        grad_input, grad_weight, grad_bias, grad_offset, grad_mask = gradients
        ours = _conv_backward(grad_output, input, offset, weight, mask, _v2(sizes))
        for theirs, gradient in zip((grad_input, grad_offset, grad_weight, grad_mask), ours):
            theirs.copy_(gradient)
        if with_bias:
            grad_bias.copy_(grad_output.sum((0, 2, 3)))

    @staticmethod
    def deform_roi_pool_forward(input, rois, offset, output, **sizes):
        output.copy_(RAW.deform_roi_align(input, rois, _dy_first(offset), **_pool(sizes)))

    @staticmethod
    def deform_roi_pool_backward(
        grad_output, input, rois, offset, grad_input, grad_offset, **sizes
    ):
        gradients = RAW.deform_roi_align_backward(
            grad_output, input, rois, _dy_first(offset), **_pool(sizes)
        )
        grad_input.copy_(gradients[0])
        if offset.numel():
            grad_offset.copy_(_dy_first(gradients[1]))


def _v1(sizes):
    return [[sizes[f"{name}H"], sizes[f"{name}W"]] for name in ("d", "pad", "dilation")]


def _v2(sizes):
    return [[sizes[f"{name}_h"], sizes[f"{name}_w"]] for name in ("stride", "pad", "dilation")]


def _conv_backward(grad_output, input, offset, weight, mask, geometry):
    return RAW.deform_conv2d_backward(grad_output, input, offset, weight, mask, *geometry, "zero")


def _pool(sizes):
    size = [sizes.pop("pooled_height"), sizes.pop("pooled_width")]
    return {**sizes, "output_size": size}


def _dy_first(offset):
    """mmcv has dx first, and an empty tensor where there is no offset."""
    return offset.flip(1) if offset.numel() else None


def mmcv():
    sys.modules["mmcv._ext"] = Ext("mmcv._ext")
    import mmcv.ops  # noqa: F401


# ---- CUDA tests without a GPU --------------------------------------------------------------------


class OnTheCpu(TorchFunctionMode):
    """Replaces the device "cuda" in every call of torch by "cpu"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.cuda:
            return args[0]
        args = tuple(map(_on_cpu, args))
        return function(*args, **{name: _on_cpu(v) for name, v in (kwargs or {}).items()})


def _on_cpu(value):
    is_cuda = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device)
    return "cpu" if is_cuda else value


@pytest.fixture(autouse=True)
def _in_place(record_property):
    CALLS.clear()
    with OnTheCpu() if WITHOUT_GPU else nullcontext():
        yield
    record_property("calls", len(CALLS))


if WITHOUT_GPU:
    torch.cuda.is_available = lambda: True
    torch.cuda.amp.autocast = partial(torch.autocast, "cpu", dtype=torch.float16)
globals()[PEER]()
