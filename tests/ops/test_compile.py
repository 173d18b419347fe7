"""torch.compile without graph breaks and torch.export of every operator, static and dynamic."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from d2_deformable import ops


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def conv_inputs(images=2, height=7, width=6, groups=1, mask=True, bias=True, device="cpu"):
    def random(*shape):
        return torch.randn(shape, device=device).requires_grad_()

    return {
        "input": random(images, 4, height, width),
        "offset": random(images, 2 * groups * 9, height, width),
        "weight": random(6, 4 // groups, 3, 3),
        "bias": random(6) if bias else None,
        "mask": random(images, groups * 9, height, width) if mask else None,
    }


def pool_inputs(images=2, height=7, width=6, rois=3, classes=2, device="cpu"):
    corner = 10 * torch.rand(rois, 2, device=device)
    index = torch.randint(images, (rois, 1), device=device)
    boxes = torch.cat([index, corner, corner + 5 + 10 * torch.rand(rois, 2, device=device)], dim=1)
    image = torch.randn(images, 16, height, width, device=device).requires_grad_()
    offset = torch.randn(rois, 2 * classes, 2, 3, device=device).requires_grad_()
    return {"input": image, "rois": boxes, "offset": offset if classes else None}


def align_inputs(**sizes):
    inputs = pool_inputs(**sizes, classes=1)
    return {**inputs, "offset": inputs["offset"].detach()[..., :2].requires_grad_()}


def ps_inputs(**sizes):
    inputs = pool_inputs(**sizes, classes=0)
    return {"input": inputs["input"], "rois": inputs["rois"]}


POOL = {"output_size": 2, "spatial_scale": 0.3}
CALLS = {
    "conv": (ops.deform_conv2d, conv_inputs, {"padding": 1}),
    "conv legacy, no mask": (
        ops.deform_conv2d,
        lambda **sizes: conv_inputs(**sizes, mask=False),
        {"padding": (2, 2), "dilation": 2, "border": "legacy"},
    ),
    "conv groups, no bias": (
        ops.deform_conv2d,
        lambda **sizes: conv_inputs(**sizes, groups=2, bias=False),
        {"padding": 1},
    ),
    "deform pool": (ops.deform_roi_pool, pool_inputs, {**POOL, "group_size": 2}),
    "deform pool, no offset": (
        ops.deform_roi_pool,
        lambda **sizes: pool_inputs(**sizes, classes=0),
        {**POOL, "samples_per_part": 2, "gamma": 0.2, "round_rois": False},
    ),
    "align": (ops.deform_roi_align, align_inputs, POOL),
    "ps pool": (ops.ps_roi_pool, ps_inputs, POOL),
}
NAMES = ["align", "conv", "deform pool", "ps pool"]
EVERY = pytest.mark.parametrize("name", CALLS)


def values_and_gradients(function, inputs, autocast=False) -> list:
    device = inputs["input"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        output = function(inputs)
    leaves = [t for t in inputs.values() if t is not None and t.requires_grad]
    return [output, *torch.autograd.grad(output.float().square().sum(), leaves)]


@EVERY
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_compiles_in_one_graph(name, autocast, device):
    op, make, arguments = CALLS[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda inputs: op(**inputs, **arguments), backend=counter, fullgraph=True, dynamic=False
    )
    inputs = make(device=device)
    actual = values_and_gradients(compiled, inputs, autocast)
    expected = values_and_gradients(lambda inputs: op(**inputs, **arguments), inputs, autocast)
    torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


@EVERY
@pytest.mark.parametrize("marked", [False, True], ids=["dynamic", "mark_dynamic"])
def test_one_graph_serves_all_sizes(name, marked, device):
    op, make, arguments = CALLS[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda inputs: op(**inputs, **arguments),
        backend=counter,
        fullgraph=True,
        dynamic=None if marked else True,
    )
    # All sizes differ from each other and from the fixed ones: the compiler treats equal sizes as
    # one.
    rois = {} if name.startswith("conv") else {"rois": 17}
    sizes = {**rois, "images": 7, "height": 11, "width": 13}
    graphs = None
    for more in (0, 1, 4):
        inputs = make(**{key: size + more for key, size in sizes.items()}, device=device)
        if marked:
            mark_dynamic(inputs)
        actual = values_and_gradients(compiled, inputs)
        expected = values_and_gradients(lambda inputs: op(**inputs, **arguments), inputs)
        torch.testing.assert_close(actual, expected)
        # The compiler may run its backend twice for one graph: it fixes numbers such as the scale
        # the second time.
        graphs = graphs or counter.frame_count
    assert counter.frame_count == graphs


def mark_dynamic(inputs) -> None:
    maps = ["input"] if "rois" in inputs else ["input", "offset", "mask"]
    for name in maps:
        if inputs[name] is not None:
            for dim in (0, 2, 3):
                torch._dynamo.mark_dynamic(inputs[name], dim)
    for name in {"rois", "offset"} & inputs.keys() - set(maps):
        if inputs[name] is not None:
            torch._dynamo.mark_dynamic(inputs[name], 0)


@pytest.mark.parametrize(
    "name", [pytest.param("conv", marks=pytest.mark.slow), "deform pool", "ps pool"]
)
def test_inductor(name, device):
    op, make, arguments = CALLS[name]
    compiled = torch.compile(lambda inputs: 2 * op(**inputs, **arguments).relu(), fullgraph=True)
    inputs = make(device=device)
    actual = values_and_gradients(compiled, inputs)
    expected = values_and_gradients(lambda inputs: 2 * op(**inputs, **arguments).relu(), inputs)
    torch.testing.assert_close(actual, expected)


def test_compiled_transforms(device):
    """Per-sample gradients inside a compiled function."""
    inputs = conv_inputs(device=device)
    tensors = [t.detach() for t in inputs.values()]

    def loss(x, offset, weight, bias, mask):
        return ops.deform_conv2d(x[None], offset[None], weight, bias, 1, 1, 1, mask[None]).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 2)), (0, 0, None, None, 0))
    actual = torch.compile(per_sample, backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(actual, per_sample(*tensors))


class Call(torch.nn.Module):
    """An operator as torch.export takes it: a module whose inputs are tensors only."""

    def __init__(self, op, arguments, names):
        super().__init__()
        self.op, self.arguments, self.names = op, arguments, names

    def forward(self, *tensors):
        return self.op(**dict(zip(self.names, tensors, strict=True)), **self.arguments)


def dynamic_shapes(inputs) -> tuple:
    """Mark as dynamic: N, H and W of feature maps, and R of RoIs."""
    map_sizes = {0: Dim("images"), 2: Dim("height", min=4), 3: Dim("width", min=4)}
    rois = {0: Dim("rois")}
    if "rois" in inputs:
        sizes = {"input": map_sizes, "rois": rois, "offset": rois}
    else:
        sizes = dict.fromkeys(("input", "offset", "mask"), map_sizes)
    return tuple(sizes.get(name) for name, tensor in inputs.items())


def exported(name, strict):
    op, make, arguments = CALLS[name]
    inputs = {key: tensor for key, tensor in make().items() if tensor is not None}
    module = Call(op, arguments, list(inputs))
    return torch.export.export(
        module,
        tuple(t.detach() for t in inputs.values()),
        dynamic_shapes={"tensors": dynamic_shapes(inputs)},
        strict=strict,
    )


@EVERY
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_exports_with_dynamic_shapes(name, strict):
    op, make, arguments = CALLS[name]
    module = exported(name, strict).module()
    rois = {} if name.startswith("conv") else {"rois": 9}
    for sizes in ({"images": 1, "height": 11, "width": 5, **rois}, {"images": 5}):
        inputs = {key: tensor for key, tensor in make(**sizes).items() if tensor is not None}
        torch.testing.assert_close(module(*inputs.values()), op(**inputs, **arguments))


def test_saved_programs_run_in_another_process(tmp_path):
    """The other process imports d2_deformable and nothing else of ours."""
    for name in NAMES:
        _, make, _ = CALLS[name]
        program = exported(name, strict=False)
        inputs = [t.detach() for t in make(images=3).values() if t is not None]
        torch.export.save(program, tmp_path / f"{name}.pt2")
        torch.save((inputs, program.module()(*inputs)), tmp_path / f"{name}.pt")
    script = """
import sys
from pathlib import Path
import torch
import d2_deformable
for file in sorted(Path(sys.argv[1]).glob("*.pt2")):
    inputs, expected = torch.load(file.with_suffix(".pt"))
    torch.testing.assert_close(torch.export.load(file).module()(*inputs), expected)
    print(file.stem)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == NAMES
