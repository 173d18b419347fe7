"""Our operators and their peers behind one interface, from the tensors of a case to the output."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import torchvision

from d2_deformable import ops

from .cases import Convolution, Pooling

PLAIN, OURS, TORCHVISION = "plain", "ours", "torchvision"


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    Args:
        function: maps the tensors of a case to the output.
        leaves: the tensors that get gradients; None if there is no backward pass.
        is_exact: it computes the operator of the case, so that results can be compared.
        prepare: converts tensors outside of the timed region.
    """

    function: Callable
    leaves: list[str] | None
    is_exact: bool = True
    prepare: Callable = dict

    def results(self, tensors: dict, backward: bool) -> dict:
        """Compute {"output": ...} and, with `backward`, "grad of <leaf>" of each leaf."""
        if not backward:
            with torch.no_grad():
                return {"output": self.function(tensors)}
        if self.leaves is None:
            raise NotImplementedError("no backward pass")
        tensors = {n: t.detach().requires_grad_(n in self.leaves) for n, t in tensors.items()}
        output = self.function(tensors)
        gradients = torch.autograd.grad(output, [tensors[n] for n in self.leaves], tensors["grad"])
        named = {f"grad of {n}": g for n, g in zip(self.leaves, gradients, strict=True)}
        return {"output": output.detach(), **named}


class Missing(Exception):
    """An implementation is not available; the message says why."""


def implementations(case, device) -> tuple[dict[str, Implementation], dict[str, str]]:
    """Find the available implementations by name, and the reasons why others are missing."""
    found, missing = {}, {}
    for name, build in (CONVOLUTION if isinstance(case, Convolution) else POOLING).items():
        try:
            found[name] = build(case, device)
        except Missing as reason:
            missing[name] = str(reason)
        except ImportError as error:
            missing[name] = f"not installed ({error})"
    return found, missing


# Convolutions. No implementation gets packed weights: packing them is part of every call.


def _channels_last(tensors: dict) -> dict:
    images = {n: tensors[n] for n in ("input", "weight", "grad")}
    return {n: t.contiguous(memory_format=torch.channels_last) for n, t in images.items()}


def _plain(case, device, prepare=dict):
    def function(t):
        return F.conv2d(t["input"], t["weight"], groups=case.groups, **case.geometry())

    return Implementation(function, ["input", "weight"], is_exact=False, prepare=prepare)


def _deformable(function):
    def build(case, device):
        def call(t):
            mask = t.get("mask")
            return function(t["input"], t["offset"], t["weight"], mask=mask, **case.geometry())

        return Implementation(call, case.leaves())

    return build


def _msra(plain, modulated, case):
    """Descendants of the released CUDA kernels, with their order of arguments."""
    geometry = case.geometry()
    sizes = *(geometry[n] for n in ("stride", "padding", "dilation")), case.groups

    def call(t):
        if case.modulated:
            arguments = (t["input"], t["offset"], t["mask"], t["weight"], None)
            return modulated(*arguments, *sizes, case.offset_groups)
        return plain(t["input"], t["offset"], t["weight"], *sizes, case.offset_groups)

    return Implementation(call, case.leaves())


def _detectron2(case, device):
    from detectron2 import _C
    from detectron2.layers.deform_conv import deform_conv, modulated_deform_conv

    if device.type == "cpu":
        raise Missing("on the CPU it calls torchvision's operator")
    if not hasattr(_C, "deform_conv_forward"):
        raise Missing("this Detectron2 was built without CUDA")
    return _msra(deform_conv, modulated_deform_conv, case)


def _mmcv(case, device):
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    return _msra(deform_conv2d, modulated_deform_conv2d, case)


def _onnxruntime(case, device):
    if device.type != "cpu":
        raise Missing("compared on the CPU only")
    session = _onnx_session(case, torch.get_num_threads())

    def call(t):
        (output,) = session.run(None, t)
        return torch.from_numpy(output)

    names = {"input": "X", "weight": "W", "offset": "offset", "mask": "mask"}

    def prepare(tensors):
        named = {name: tensors[name] for name in names if name in tensors}
        if named["input"].dtype != torch.float32:
            raise Missing("float32 only")
        return {names[name]: t.contiguous().numpy() for name, t in named.items()}

    return Implementation(call, None, prepare=prepare)


@cache
def _onnx_session(case, threads):
    import onnxruntime
    from onnx import TensorProto, helper

    geometry = case.geometry()
    inputs = ["X", "W", "offset"] + ["", "mask"] * case.modulated
    node = helper.make_node(
        "DeformConv",
        inputs,
        ["Y"],
        kernel_shape=[case.kernel] * 2,
        strides=[geometry["stride"]] * 2,
        pads=[geometry["padding"]] * 4,
        dilations=[geometry["dilation"]] * 2,
        group=case.groups,
        offset_group=case.offset_groups,
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)
        for name in [*filter(None, inputs), "Y"]
    ]
    graph = helper.make_graph([node], "deform_conv", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


CONVOLUTION = {
    PLAIN: _plain,
    OURS: _deformable(ops.deform_conv2d),
    "plain channels_last": lambda case, device: _plain(case, device, _channels_last),
    TORCHVISION: _deformable(torchvision.ops.deform_conv2d),
    "Detectron2": _detectron2,
    "mmcv": _mmcv,
    "ONNX Runtime": _onnxruntime,
}


# RoI pooling. No peer computes the same function; these take the same number of samples.


def _our_pooling(case, device):
    function = getattr(ops, case.operator)

    def call(t):
        offset = [t["offset"]] if "offset" in t else []
        return function(t["input"], t["rois"], *offset, **case.geometry())

    return Implementation(call, case.leaves())


def _our_plain_pooling(case, device):
    if case.operator != "deform_roi_pool":
        raise Missing("has no offsets anyway")

    def call(t):
        return ops.deform_roi_pool(t["input"], t["rois"], **case.geometry())

    return Implementation(call, ["input"], is_exact=False)


def _torchvision_pooling(case, device):
    def call(t):
        rois = t["rois"].to(t["input"].dtype)
        if case.operator == "ps_roi_pool":
            return torchvision.ops.ps_roi_pool(t["input"], rois, case.bins, 1 / 16)
        name = "ps_roi_align" if case.position_sensitive else "roi_align"
        return getattr(torchvision.ops, name)(t["input"], rois, case.bins, 1 / 16, 4)

    return Implementation(call, ["input"], is_exact=False)


def _mmcv_pooling(case: Pooling, device):
    if case.operator != "deform_roi_pool" or case.position_sensitive:
        raise Missing("has no position-sensitive pooling")
    from mmcv.ops import deform_roi_pool

    def call(t):
        bins = (case.bins, case.bins)
        return deform_roi_pool(t["input"], t["rois"], t["offset"], bins, 1 / 16, 4, 1 / 8)

    return Implementation(call, case.leaves(), is_exact=False)


POOLING = {
    TORCHVISION: _torchvision_pooling,
    OURS: _our_pooling,
    "ours without offsets": _our_plain_pooling,
    "mmcv": _mmcv_pooling,
}
