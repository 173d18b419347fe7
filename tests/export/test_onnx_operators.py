"""Each operator, exported to ONNX, gives the same results in ONNX Runtime as in eager code."""

import io

import numpy as np
import pytest
import torch
import torchvision
from ops import test_deform_conv2d as conv
from ops import test_deform_roi_pool as deform_pool
from ops import test_ps_roi_pool as ps_pool
from ops.arguments import every_argument
from torch import nn

from d2_deformable import ops

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from d2_deformable.export import onnx_operators  # noqa: E402
from d2_deformable.export.onnx import OPSET  # noqa: E402

# torch warns that this exporter is not its newest, and of constants in traces, which the tests with
# other sizes check.
pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


class Function(nn.Module):
    def __init__(self, function, names, arguments):
        super().__init__()
        self.function, self.names, self.arguments = function, names, arguments

    def forward(self, *tensors):
        return self.function(**dict(zip(self.names, tensors, strict=True)), **self.arguments)


def exported(function, tensors: dict, dynamic: dict, **arguments):
    """function(**tensors, **arguments) in ONNX Runtime, with the sizes in `dynamic` dynamic."""
    file = io.BytesIO()
    with onnx_operators.standard_operators():
        torch.onnx.export(
            Function(function, list(tensors), arguments),
            tuple(tensors.values()),
            file,
            input_names=list(tensors),
            output_names=["output"],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
    proto = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def run(**tensors):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return torch.from_numpy(session.run(None, arrays)[0])

    run.operators = [node.op_type for node in proto.graph.node]
    return run


def float32(tensors) -> dict:
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


# ---- deform_conv2d ------------------------------------------------------------------------------


@pytest.mark.parametrize("overload", [False, True])
def test_the_dispatchers_operator_in_a_users_own_module(overload):
    op = torch.ops.d2_deformable.deform_conv2d
    sizes = {"input": (1, 2, 5, 6), "offset": (1, 18, 5, 6), "weight": (3, 2, 3, 3)}
    inputs = {name: torch.randn(size) for name, size in sizes.items()}
    arguments = every_argument(ops.deform_conv2d, **inputs, padding=1)
    arguments = {name: value for name, value in arguments.items() if name not in inputs}
    run = exported(op.default if overload else op, inputs, {}, **arguments)
    expected = op(**inputs, **arguments)
    torch.testing.assert_close(run(**inputs), expected, **TOLERANCE)


@pytest.mark.parametrize("border", ["zero", "legacy"])
@pytest.mark.parametrize("case", conv.CASES)
def test_deform_conv2d(case, border):
    inputs = float32(case.inputs())
    run = exported(ops.deform_conv2d, inputs, {}, **case.geometry(), border=border)
    assert run.operators.count("DeformConv") == 1
    assert border == "legacy" or len(run.operators) == 1
    expected = ops.deform_conv2d(**inputs, **case.geometry(), border=border)
    torch.testing.assert_close(run(**inputs), expected, **TOLERANCE)


@pytest.mark.parametrize("border", ["zero", "legacy"])
def test_deform_conv2d_at_the_border(border):
    """Taps lie on, just inside, just outside and far beyond the border; the size was not traced."""
    sizes = {2: "height", 3: "width"}
    case = conv.Case(images=1, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    traced = float32(case.inputs())
    run = exported(
        ops.deform_conv2d,
        traced,
        dict.fromkeys(("input", "offset", "mask"), sizes),
        **case.geometry(),
        border=border,
    )
    inputs = float32(conv.replace(case, size=(6, 11)).inputs())
    shifts = torch.tensor([0, -1, 1, -0.5, 0.5, -1e-6, 1e-6, 3.999999, 5, -7, 1e4, -1e4, 1e20])
    inputs["offset"] = shifts[torch.randint(len(shifts), inputs["offset"].shape)]
    expected = ops.deform_conv2d(**inputs, **case.geometry(), border=border)
    torch.testing.assert_close(run(**inputs), expected, **TOLERANCE)


# ---- RoI pooling --------------------------------------------------------------------------------

SIZES = {"input": {2: "height", 3: "width"}, "rois": {0: "rois"}, "offset": {0: "rois"}}


def hard_rois(rois: int, height: int, width: int) -> torch.Tensor:
    """RoIs of one image, of any size, inside and outside; corners are at whole and half pixels."""
    extent = torch.tensor([width, height]) * 1.5
    first = torch.rand(rois, 2) * extent - extent / 6
    last = first + torch.rand(rois, 2) ** 3 * extent
    corners = torch.cat([first, last], dim=1)
    corners[::2] = (corners[::2] * 2).round() / 2
    corners[1::4] = corners[1::4].round()
    corners[::3] = corners[::3].clamp(min=0)  # many begin at the border
    corners[::5, 2:] = corners[::5, :2]  # no area
    corners[::7, 2:] = corners[::7, :2] - 3  # negative area
    return torch.cat([torch.zeros(rois, 1), corners], dim=1)


@pytest.mark.parametrize("with_offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("sizes, arguments", deform_pool.CASES)
def test_deform_roi_pool(sizes, arguments, with_offset):
    names = ["input", "rois", "offset"][: 3 if with_offset else 2]
    arguments = {**arguments, "spatial_scale": 0.26}

    def inputs(**sizes):
        tensors = deform_pool.make_inputs(**sizes)
        return float32(dict(zip(names, tensors, strict=False)))

    traced = inputs(**sizes)
    run = exported(ops.deform_roi_pool, traced, {n: SIZES[n] for n in names}, **arguments)
    for change in ({}, {"rois": 0}, {"rois": 1}, {"size": (5, 21), "rois": 40}):
        tensors = inputs(**{**sizes, **change})
        expected = ops.deform_roi_pool(**tensors, **arguments)
        torch.testing.assert_close(run(**tensors), expected, **TOLERANCE)


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("scale", [1 / 16, 0.1])
def test_deform_roi_pool_of_hard_rois(scale, round_rois):
    arguments = {"output_size": 7, "group_size": 7, "spatial_scale": scale}
    arguments["round_rois"] = round_rois

    def inputs(rois, height, width):
        offset = torch.randn(rois, 4, 7, 7) * 3
        offset[1::2] = 0
        return {
            "input": torch.randn(1, 2 * 49, height, width),
            "rois": hard_rois(rois, height / scale, width / scale),
            "offset": offset,
        }

    run = exported(ops.deform_roi_pool, inputs(3, 6, 5), SIZES, **arguments)
    tensors = inputs(400, 13, 20)
    expected = ops.deform_roi_pool(**tensors, **arguments)
    torch.testing.assert_close(run(**tensors), expected, **TOLERANCE)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_deform_roi_align(sampling_ratio):
    arguments = {"output_size": 7, "spatial_scale": 0.25, "sampling_ratio": sampling_ratio}

    def inputs(rois, height, width):
        return {
            "input": torch.randn(1, 5, height, width),
            "rois": hard_rois(rois, height * 4, width * 4),
            "offset": torch.randn(rois, 2, 7, 7) * 3,
        }

    run = exported(ops.deform_roi_align, inputs(3, 6, 5), SIZES, **arguments)
    for rois in (0, 1, 300):
        tensors = inputs(rois, 23, 31)
        expected = ops.deform_roi_align(**tensors, **arguments)
        torch.testing.assert_close(run(**tensors), expected, **TOLERANCE)


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("scale", [1 / 16, 0.1])
def test_ps_roi_pool(scale, round_rois):
    """Bins that end at a whole pixel of the map end there in every runtime."""
    arguments = {"output_size": 7, "spatial_scale": scale, "round_rois": round_rois}
    dynamic = {name: SIZES[name] for name in ("input", "rois")}

    def inputs(rois, height, width):
        return {
            "input": torch.randn(1, 49, height, width),
            "rois": hard_rois(rois, height / scale, width / scale),
        }

    run = exported(ops.ps_roi_pool, inputs(3, 6, 5), dynamic, **arguments)
    for rois in (0, 1, 5000):
        tensors = inputs(rois, 23, 31)
        expected = ops.ps_roi_pool(**tensors, **arguments)
        torch.testing.assert_close(run(**tensors), expected, **TOLERANCE)


def test_ps_roi_pool_of_several_images():
    image, rois = (t.detach().float() for t in ps_pool.make_inputs())
    tensors = {"input": image, "rois": rois}
    arguments = {"output_size": (3, 2), "spatial_scale": 0.26}
    run = exported(ops.ps_roi_pool, tensors, {}, **arguments)
    torch.testing.assert_close(run(**tensors), ops.ps_roi_pool(**tensors, **arguments), **TOLERANCE)


# ---- NMS ----------------------------------------------------------------------------------------


def candidates(boxes: int, classes: int, ties: bool) -> dict:
    corner = torch.rand(boxes, 2) * 300
    tensors = {
        "boxes": torch.cat([corner, corner + torch.rand(boxes, 2) * 200], dim=1),
        "scores": torch.rand(boxes),
        # Moving so many classes apart rounds box coordinates to multiples of 1/16.
        "classes": torch.randint(classes, (boxes,)) * 100,
    }
    if ties:
        tensors["boxes"] = (tensors["boxes"] / 40).round() * 40
        tensors["scores"] = (tensors["scores"] * 10).round() / 10 - 0.5
    return tensors


@pytest.fixture(scope="module", params=[0.3, 0.5, 0.7])
def nms(request):
    tensors = candidates(4, 2, False)
    dynamic = {name: {0: "boxes"} for name in tensors}
    run = exported(onnx_operators.batched_nms, tensors, dynamic, threshold=request.param)
    return run, request.param


@pytest.mark.parametrize("ties", [False, True], ids=["any", "ties"])
@pytest.mark.parametrize("classes", [1, 20])
@pytest.mark.parametrize("boxes", [0, 1, 2, 999, 1000, 1001, 1500])
def test_batched_nms(boxes, classes, ties, nms):
    """The same boxes come in the same order, whether or not torchvision moves classes apart."""
    run, threshold = nms
    for _ in range(3):
        tensors = candidates(boxes, classes, ties)
        expected = torchvision.ops.batched_nms(
            tensors["boxes"], tensors["scores"], tensors["classes"], threshold
        )
        if boxes > 1000:  # then torchvision's order of equal scores is undefined
            expected = expected.sort().values
            order = tensors["scores"][expected].sort(descending=True, stable=True).indices
            expected = expected[order]
        assert run(**tensors).tolist() == expected.tolist()


def test_nms_compares_with_the_exact_threshold(nms):
    """float32(0.3) is above 0.3, so an overlap of 3 / 10 is too much; float32(0.7) is below."""
    run, threshold = nms
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 10 * threshold, 1]])
    tensors = {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.8]),
        "classes": torch.zeros(2, dtype=torch.int64),
    }
    overlap = np.float32(round(10 * threshold)) / np.float32(10)
    assert len(run(**tensors)) == (1 if float(overlap) > threshold else 2)
    expected = torchvision.ops.nms(boxes, tensors["scores"], threshold)
    assert run(**tensors).tolist() == expected.tolist()


def test_nothing_stays_replaced():
    before = torch.ops.d2_deformable.deform_conv2d, onnx_operators.traceable.batched_nms
    with onnx_operators.standard_operators():
        assert onnx_operators.traceable.batched_nms is onnx_operators.batched_nms
    after = torch.ops.d2_deformable.deform_conv2d, onnx_operators.traceable.batched_nms
    assert before == after
    assert torch.overrides._get_current_function_mode() is None
