"""Backbones in one graph: torch.compile forward and backward, torch.export, saved programs."""

import subprocess
import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from d2_deformable.layers import DeformConv2d

slow = pytest.mark.slow
SETTINGS = {
    "res3": {"OUT_FEATURES": ["res2", "res3"], "DEFORM_NUM_LAYERS": 2},
    "R-18": {},
    "R-50 modulated": {"DEPTH": 50, "DEFORM_MODULATED": True, "DEFORM_NUM_GROUPS": 2},
    "FPN": {"RES5_DILATION": 1, "OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "AIR": {"DEPTH": 26, "DEFORM_BORDER": "legacy"},
}
BUILDERS = {
    "FPN": "build_deform_resnet_fpn_backbone",
    "AIR": "build_aligned_inception_resnet_backbone",
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(cfg, name):
    """A narrow network whose convolutions in the last stage have random offsets."""
    cfg.MODEL.BACKBONE.NAME = BUILDERS.get(name, "build_deform_resnet_backbone")
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = SETTINGS["FPN"]["OUT_FEATURES"], 16
    narrow = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 8}
    usual = {"DEPTH": 18, "RES5_DILATION": 2, "OUT_FEATURES": ["res4", "res5"]}
    settings = {**narrow, **usual, "DEFORM_NUM_LAYERS": 3, **SETTINGS[name]}
    if settings["DEPTH"] >= 50:
        settings["RES2_OUT_CHANNELS"] = 16
    for key, value in settings.items():
        setattr(cfg.MODEL.RESNETS, key, value)
    net = build_backbone(cfg, ShapeSpec(channels=3))
    for module in net.modules():
        if isinstance(module, DeformConv2d):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.05)
    return net


def values_and_gradients(function, net, x) -> list:
    features = list(function(x).values())
    total = sum(feature.square().mean() for feature in features)
    gradients = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    return [*features, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize(
    "name",
    [
        "R-18",
        "FPN",
        pytest.param("R-50 modulated", marks=slow),
        pytest.param("AIR", marks=slow),
    ],
)
def test_compiles_in_one_graph(cfg, name, device):
    net = build(cfg, name).train().to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, 64, 96, device=device)
    actual = values_and_gradients(compiled, net, x)
    torch.testing.assert_close(actual, values_and_gradients(net, net, x))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "name",
    [
        "res3",
        pytest.param("R-18", marks=slow),
        pytest.param("FPN", marks=slow),
        pytest.param("R-50 modulated", marks=slow),
        pytest.param("AIR", marks=slow),
    ],
)
def test_one_graph_serves_all_sizes(cfg, name, device):
    net = build(cfg, name).train().to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    graphs = None
    # An FPN adds maps of two strides, so sides are multiples of 64. A map of size 1 would need a
    # graph of its own.
    for size in ((128, 192), (192, 256)):
        x = torch.randn(2, 3, *size, device=device)
        actual = values_and_gradients(compiled, net, x)
        torch.testing.assert_close(actual, values_and_gradients(net, net, x))
        graphs = graphs or counter.frame_count  # see tests/ops/test_compile.py
    assert counter.frame_count == graphs


@slow
def test_inductor(cfg, device):
    net = build(cfg, "R-18").eval().to(device)
    x = torch.randn(2, 3, 64, 96, device=device)
    with torch.no_grad():
        actual = torch.compile(net, fullgraph=True)(x)
        torch.testing.assert_close(actual, net(x), rtol=1e-4, atol=1e-4)


def export(net, strict):
    """Export with any number of images, and any sides that are multiples of 64."""
    height, width = (64 * Dim(side, min=2, max=32) for side in ("height", "width"))
    sizes = {0: Dim("images"), 2: height, 3: width}
    x = torch.randn(2, 3, 128, 192)
    return torch.export.export(net.eval(), (x,), dynamic_shapes=(sizes,), strict=strict)


@pytest.mark.parametrize(
    "name, strict",
    [
        ("res3", True),
        ("R-18", False),
        ("FPN", False),
        pytest.param("R-18", True, marks=slow),
        pytest.param("FPN", True, marks=slow),
        pytest.param("R-50 modulated", False, marks=slow),
        pytest.param("AIR", False, marks=slow),
    ],
)
def test_exports_with_dynamic_shapes(cfg, name, strict):
    net = build(cfg, name)
    program = export(net, strict).module()
    x = torch.randn(1, 3, 256, 128)
    with torch.no_grad():
        torch.testing.assert_close(program(x), net(x))


@slow
def test_saved_program_runs_in_another_process(cfg, tmp_path):
    """The other process imports d2_deformable and nothing else of ours."""
    net = build(cfg, "R-18")
    torch.export.save(export(net, strict=False), tmp_path / "net.pt2")
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.save((x, net(x)), tmp_path / "expected.pt")
    script = """
import sys
import torch
import d2_deformable
x, expected = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x), expected)
"""
    files = (tmp_path / "net.pt2", tmp_path / "expected.pt")
    run = subprocess.run(
        [sys.executable, "-c", script, *files], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
