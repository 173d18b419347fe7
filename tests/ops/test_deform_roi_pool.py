"""deform_roi_pool against the slow reference."""

import pytest
import torch
from ops.arguments import every_argument
from torch.library import opcheck

import reference
from d2_deformable.ops import deform_roi_pool

FORWARD = torch.ops.d2_deformable.deform_roi_pool.default
BACKWARD = torch.ops.d2_deformable.deform_roi_pool_backward.default


def make_inputs(
    images=3,
    rois=5,
    top_channels=6,
    group_size=1,
    classes=1,
    parts=(3, 3),
    size=(13, 9),
    dtype=torch.float64,
    device="cpu",
) -> tuple:
    """Input, RoIs (some reach beyond the map at scale 1/4) and an offset. Corners are not integers
    and offsets are random, so no sampling coordinate is an integer."""
    like = {"dtype": dtype, "device": device}
    image = torch.randn(images, top_channels * group_size**2, *size, **like)
    corner = torch.rand(rois, 2, **like) * 40 - 6
    index = torch.randint(max(images, 1), (rois, 1)).to(**like)
    boxes = torch.cat([index, corner, corner + torch.rand(rois, 2, **like) * 30], dim=1)
    offset = torch.randn(rois, 2 * classes, *parts, **like)
    return image.requires_grad_(), boxes, offset.requires_grad_()


def values_and_gradients(function, image, rois, offset, **arguments) -> list:
    output = function(image, rois, offset, **arguments)
    weights = torch.cos(torch.arange(output.numel(), device=output.device)).to(output.dtype)
    weights[::5] = 0  # kernels skip zero gradients, and no others
    total = (output * weights.view(output.shape)).sum()
    leaves = [image] if offset is None else [image, offset]
    return [output, *torch.autograd.grad(total, leaves)]


CASES = [
    pytest.param({}, {"output_size": 3}, id="deformable"),
    pytest.param({"classes": 3}, {"output_size": 3}, id="class-wise"),
    pytest.param(
        {"group_size": 3, "classes": 6}, {"output_size": 3, "group_size": 3}, id="one per class"
    ),
    pytest.param(
        {"group_size": 2, "classes": 2, "parts": (2, 4)},
        {"output_size": (5, 3), "group_size": 2, "samples_per_part": 3, "gamma": 0.3},
        id="no two sizes equal",
    ),
    pytest.param(
        {"parts": (5, 2), "group_size": 3},
        {"output_size": 2, "group_size": 3},
        id="more parts and groups than bins",
    ),
    pytest.param(
        {"top_channels": 130, "rois": 3}, {"output_size": 2}, id="more than two channel blocks"
    ),
    pytest.param({}, {"output_size": 3, "samples_per_part": 1}, id="one sample"),
]


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize("sizes, arguments", CASES)
def test_equals_reference(sizes, arguments, round_rois, device, assert_close):
    inputs = make_inputs(**sizes, device=device)
    arguments = {"spatial_scale": 0.26, "round_rois": round_rois, **arguments}
    actual = values_and_gradients(deform_roi_pool, *inputs, **arguments)
    expected = values_and_gradients(reference.deform_roi_pool, *inputs, **arguments)
    assert_close(actual, expected)


@pytest.mark.parametrize("group_size", [1, 3])
def test_equals_reference_without_offset(group_size, device, assert_close):
    image, rois, _ = make_inputs(group_size=group_size, device=device)
    arguments = {"output_size": 3, "spatial_scale": 0.26, "group_size": group_size}
    actual = values_and_gradients(deform_roi_pool, image, rois, None, **arguments)
    expected = values_and_gradients(reference.deform_roi_pool, image, rois, None, **arguments)
    assert_close(actual, expected)


def test_float32_equals_float64(device, assert_close):
    inputs = make_inputs(group_size=3, classes=2, dtype=torch.float32, device=device)
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    arguments = {"output_size": 3, "spatial_scale": 0.26, "group_size": 3}
    actual = values_and_gradients(deform_roi_pool, *inputs, **arguments)
    expected = values_and_gradients(deform_roi_pool, *doubles, **arguments)
    assert all(tensor.dtype == torch.float32 for tensor in actual)
    assert_close(actual, [tensor.float() for tensor in expected])


@pytest.mark.parametrize("images", [1, 65])
def test_batches(images, device, assert_close):
    inputs = make_inputs(images=images, rois=70, top_channels=2, size=(5, 4), device=device)
    arguments = {"output_size": 2, "spatial_scale": 0.1, "samples_per_part": 2}
    actual = values_and_gradients(deform_roi_pool, *inputs, **arguments)
    expected = values_and_gradients(reference.deform_roi_pool, *inputs, **arguments)
    assert_close(actual, expected)


@pytest.mark.parametrize("images", [0, 2])
def test_no_rois(images, device):
    inputs = make_inputs(images=images, rois=0, group_size=3, device=device)
    output, grad_input, grad_offset = values_and_gradients(
        deform_roi_pool, *inputs, output_size=3, spatial_scale=0.25, group_size=3
    )
    assert output.shape == (0, 6, 3, 3)
    assert grad_input.shape == inputs[0].shape and not grad_input.any()
    assert grad_offset.shape == inputs[2].shape


def test_gradcheck(device):
    inputs = make_inputs(
        images=2, rois=3, top_channels=2, group_size=2, classes=2, size=(4, 3), device=device
    )
    image, rois, offset = inputs
    assert torch.autograd.gradcheck(
        lambda image, offset: deform_roi_pool(
            image, rois, offset, output_size=3, spatial_scale=0.09, group_size=2
        ),
        (image, offset),
        eps=1e-7,
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


@pytest.mark.parametrize("with_offset", [False, True])
def test_opcheck(with_offset, device):
    image, rois, offset = make_inputs(group_size=2, classes=2, device=device)
    offset = offset if with_offset else None
    arguments = {
        "output_size": [3, 2],
        "spatial_scale": 0.26,
        "group_size": 2,
        "samples_per_part": 2,
        "gamma": 0.2,
        "round_rois": False,
    }
    opcheck(FORWARD, (image, rois, offset), arguments)
    grad = torch.randn_like(deform_roi_pool(image, rois, offset, **arguments))
    offset = offset.detach() if with_offset else None
    opcheck(BACKWARD, (grad, image.detach(), rois, offset), arguments)


def test_traces_with_dynamic_shapes(device, assert_close):
    compiled = torch.compile(deform_roi_pool, backend="aot_eager", fullgraph=True, dynamic=True)
    arguments = {"output_size": 3, "spatial_scale": 0.26}
    for rois, size in ((5, (13, 9)), (4, (7, 8))):
        inputs = make_inputs(rois=rois, size=size, device=device)
        actual = values_and_gradients(compiled, *inputs, **arguments)
        assert_close(actual, values_and_gradients(deform_roi_pool, *inputs, **arguments))


def test_meta_device_gives_shapes():
    image, rois, offset = (t.to("meta") for t in make_inputs(group_size=3, classes=2))
    output = deform_roi_pool(
        image, rois, offset, output_size=(4, 5), spatial_scale=0.25, group_size=3
    )
    assert output.shape == (5, 6, 4, 5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_layout(channels_last, device, assert_same):
    inputs = make_inputs(group_size=2, classes=2, device=device)
    arguments = {"output_size": 3, "spatial_scale": 0.26, "group_size": 2}
    expected = values_and_gradients(deform_roi_pool, *inputs, **arguments)
    image, rois, offset = (t.detach() for t in inputs)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
        offset = offset.contiguous(memory_format=torch.channels_last)
    else:
        image, offset = (torch.stack([t, t], dim=-1)[..., 0] for t in (image, offset))
    strided = (image.requires_grad_(), rois.T.contiguous().T, offset.requires_grad_())
    assert not any(t.is_contiguous() for t in strided)
    actual = values_and_gradients(deform_roi_pool, *strided, **arguments)
    assert_same(actual, expected)


@pytest.mark.parametrize("group_size", [1, 3])
def test_results_do_not_depend_on_threads(group_size, threads):
    inputs = make_inputs(
        images=2, rois=200, top_channels=70, group_size=group_size, dtype=torch.float32
    )
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(
            values_and_gradients(
                deform_roi_pool, *inputs, output_size=3, spatial_scale=0.26, group_size=group_size
            )
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9])
def test_wild_boxes_and_offsets_leave_bins_empty(value, device):
    image, rois, offset = make_inputs(rois=4, dtype=torch.float32, device=device)
    arguments = {"output_size": 3, "spatial_scale": 0.26}
    for place in range(1, 5):
        wild = rois.clone()
        wild[:, place] = value
        for tensor in values_and_gradients(deform_roi_pool, image, wild, offset, **arguments):
            assert tensor.isfinite().all()
    for axis in (0, 1):
        wild = offset.detach().clone()
        wild[:, axis] = value
        wild.requires_grad_()
        for tensor in values_and_gradients(deform_roi_pool, image, rois, wild, **arguments):
            assert not tensor.any()


@pytest.mark.parametrize("index", [-1, 3, 0.5, -0.5, float("nan"), float("inf"), 1e30])
def test_image_index_out_of_range(index):
    image, rois, offset = make_inputs(images=3)
    rois[2, 0] = index
    with pytest.raises(RuntimeError, match=r"rois\[2\] names image .* input holds 3 images"):
        deform_roi_pool(image, rois, offset, output_size=3, spatial_scale=0.25)


def wrong(**changes) -> dict:
    image, rois, offset = (t.detach() for t in make_inputs(group_size=3, classes=2))
    call = {"input": image, "rois": rois, "offset": offset}
    call.update(output_size=3, spatial_scale=0.25, group_size=3)
    changed = {n: c(call[n]) if callable(c) else c for n, c in changes.items()}
    return {**call, **changed}


@pytest.mark.parametrize(
    "call, message",
    [
        (wrong(input=lambda t: t[0]), r"input must be \(N, C, H, W\).*got shape \(54, 13, 9\)"),
        (wrong(input=lambda t: t[:, :50]), r"input \(3, 50, 13, 9\) .* group_size\^2 = 9"),
        (
            wrong(input=lambda t: t.int()),
            r"input is torch.int32, but float32, float64, float16",
        ),
        (wrong(rois=lambda t: t[:, 1:]), r"rois must be \(R, 5\).*\(5, 4\) for input \(3, 54,"),
        (wrong(rois=lambda t: t.float()), r"rois is torch.float32 but input is torch.float64"),
        (wrong(rois=lambda t: t.to("meta")), r"rois is on meta but input is on cpu"),
        (wrong(offset=lambda t: t[:4]), r"offset is \(4, 4, 3, 3\), expected \(5, .* \(5, 5\)"),
        (wrong(offset=lambda t: t[:, :3]), r"offset is \(5, 3, 3, 3\), expected \(5, 2\*classes"),
        (wrong(offset=lambda t: t[0]), r"offset is \(4, 3, 3\)"),
        (wrong(offset=lambda t: t.repeat(1, 2, 1, 1)), r"4 classes.* 6 output channels"),
        (wrong(offset=lambda t: t.float()), r"offset is torch.float32 but input"),
        (wrong(output_size=0), r"output_size is an int or .* at least 1; got 0"),
        (wrong(group_size=0), "group_size and samples_per_part must be .* below 2.24, got 0 and 4"),
        (wrong(samples_per_part=0), "must be at least 1 and below 2.24, got 3 and 0"),
        (wrong(samples_per_part=2**32), "must be at least 1 and below 2.24, got 3 and 4294967296"),
    ],
)
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError, match=f"deform_roi_pool: .*{message}"):
        deform_roi_pool(**call)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.zeros(5, 4)}, r"rois must be \(R, 5\), got shape \[5, 4\]"),
        ({"offset": torch.zeros(4, 4, 3, 3)}, r"offset must have shape \[5, 4, 3, 3\]"),
        ({"offset": torch.zeros(5, 8, 3, 3)}, "divides the 6 output channels"),
        ({"group_size": 5}, r"not a multiple of group_size\^2 = 25"),
        ({"output_size": [3, 0]}, "must be at least 1 and below"),
        ({"samples_per_part": 0}, "samples_per_part must be at least 1"),
    ],
)
def test_operator_protects_memory(change, message):
    """The registered operator checks sizes, since it can be called without the public function."""
    call = wrong(input=lambda t: t.float(), rois=lambda t: t.float(), offset=lambda t: t.float())
    with pytest.raises(RuntimeError, match=message):
        FORWARD(**{**every_argument(deform_roi_pool, **call), **change})
