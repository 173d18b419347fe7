"""ps_roi_pool against the slow reference and against numbers computed by hand."""

import pytest
import torch
from ops.arguments import every_argument
from torch.library import opcheck

import reference
from d2_deformable.ops import ps_roi_pool

FORWARD = torch.ops.d2_deformable.ps_roi_pool.default
BACKWARD = torch.ops.d2_deformable.ps_roi_pool_backward.default


def make_inputs(
    images=3, rois=5, top_channels=4, bins=(3, 2), size=(13, 9), dtype=torch.float64, device="cpu"
) -> tuple:
    """Input and RoIs, some of which reach beyond the map at scale 1/4."""
    like = {"dtype": dtype, "device": device}
    image = torch.randn(images, top_channels * bins[0] * bins[1], *size, **like)
    corner = torch.rand(rois, 2, **like) * 40 - 6
    index = torch.randint(max(images, 1), (rois, 1)).to(**like)
    boxes = torch.cat([index, corner, corner + torch.rand(rois, 2, **like) * 30], dim=1)
    return image.requires_grad_(), boxes


def value_and_gradient(function, image, rois, **arguments) -> list:
    output = function(image, rois, **arguments)
    weights = torch.cos(torch.arange(output.numel(), device=output.device)).to(output.dtype)
    weights[::5] = 0  # kernels skip zero gradients, and no others
    return [output, *torch.autograd.grad((output * weights.view(output.shape)).sum(), image)]


@pytest.mark.parametrize("round_rois", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"images": 1, "bins": (1, 1)},
        {"images": 65, "rois": 70, "size": (4, 5)},
        {"bins": (7, 7), "rois": 6},
        {"top_channels": 130, "bins": (2, 1)},
    ],
    ids=["rectangles", "one bin", "batch 65", "7x7", "more than two channel blocks"],
)
def test_equals_reference(sizes, round_rois, device, assert_close):
    image, rois = make_inputs(**sizes, device=device)
    arguments = {"output_size": sizes.get("bins", (3, 2)), "spatial_scale": 0.26}
    arguments["round_rois"] = round_rois
    actual = value_and_gradient(ps_roi_pool, image, rois, **arguments)
    expected = value_and_gradient(reference.ps_roi_pool, image, rois, **arguments)
    assert_close(actual, expected)


def test_float32_equals_float64(device, assert_close):
    image, rois = make_inputs(dtype=torch.float32, device=device)
    double = image.detach().double().requires_grad_()
    # No edge of a bin is a whole number, where rounding would decide about a row of pixels.
    arguments = {"output_size": (3, 2), "spatial_scale": 0.26}
    actual = value_and_gradient(ps_roi_pool, image, rois, **arguments)
    expected = value_and_gradient(ps_roi_pool, double, rois.double(), **arguments)
    assert_close(actual, [tensor.float() for tensor in expected])


@pytest.mark.parametrize("images", [0, 2])
def test_no_rois(images, device):
    image, rois = make_inputs(images=images, rois=0, device=device)
    output, gradient = value_and_gradient(
        ps_roi_pool, image, rois, output_size=(3, 2), spatial_scale=0.25
    )
    assert output.shape == (0, 4, 3, 2)
    assert gradient.shape == image.shape and not gradient.any()


def test_gradcheck(device):
    image, rois = make_inputs(images=2, rois=4, top_channels=2, size=(6, 5), device=device)
    assert torch.autograd.gradcheck(
        lambda image: ps_roi_pool(image, rois, output_size=(3, 2), spatial_scale=0.13),
        (image,),
        nondet_tol=0.0 if device.type == "cpu" else 1e-12,
    )


def test_opcheck(device):
    image, rois = make_inputs(device=device)
    arguments = {"output_size": [3, 2], "spatial_scale": 0.26, "round_rois": False}
    opcheck(FORWARD, (image, rois), arguments)
    grad = torch.randn_like(ps_roi_pool(image, rois, **arguments)).detach()
    for channels_last in (False, True):
        keywords = {"input_size": list(image.shape), "channels_last": channels_last, **arguments}
        opcheck(BACKWARD, (grad, rois), keywords)


def test_traces_with_dynamic_shapes(device, assert_close):
    compiled = torch.compile(ps_roi_pool, backend="aot_eager", fullgraph=True, dynamic=True)
    arguments = {"output_size": (3, 2), "spatial_scale": 0.26}
    for rois, size in ((5, (13, 9)), (4, (7, 8))):
        inputs = make_inputs(rois=rois, size=size, device=device)
        actual = value_and_gradient(compiled, *inputs, **arguments)
        assert_close(actual, value_and_gradient(ps_roi_pool, *inputs, **arguments))


def test_meta_device_gives_shapes():
    image, rois = (tensor.to("meta") for tensor in make_inputs())
    assert ps_roi_pool(image, rois, output_size=(3, 2), spatial_scale=0.25).shape == (5, 4, 3, 2)


# By hand: on the ramp 10*y + x a bin is 10 * (mean of its rows) + (mean of its columns).


@pytest.mark.parametrize(
    "roi, bins, scale, expected",
    [
        # Rows and columns 0..4 and 5..9: the last row and column count.
        ((0, 0, 10, 10), 2, 1.0, [[22.0, 27.0], [72.0, 77.0]]),
        # Bins 1.5 pixels wide touch pixels 0, 1 and 1, 2.
        ((0, 0, 3, 3), 2, 1.0, [[5.5, 6.5], [15.5, 16.5]]),
        # Image pixels 20..40 at scale 1/8: 2.5 to 5, pixels 2, 3, 4.
        ((20, 20, 40, 40), 1, 0.125, [[33.0]]),
        # Halves are rounded away from zero: 0.5 -> 1, 2.5 -> 3, 6.5 -> 7, so pixels 1..6 and 3..6.
        ((0.5, 2.5, 6.5, 6.5), 1, 1.0, [[48.5]]),
        # Cut to the map: rows 8, 9, columns 0, 1.
        ((-3, 8, 2, 20), 1, 1.0, [[85.5]]),
        # An empty RoI at 3 covers 0.1 pixels: only pixel 3.
        ((3, 3, 3, 3), 1, 1.0, [[33.0]]),
        # Outside the map: empty.
        ((30, 30, 40, 40), 1, 1.0, [[0.0]]),
    ],
)
def test_bins_by_hand(roi, bins, scale, expected, device, assert_close):
    like = {"dtype": torch.float64, "device": device}
    y, x = torch.arange(10, **like)[:, None], torch.arange(10, **like)
    image = (10 * y + x).expand(1, bins**2, 10, 10)
    rois = torch.tensor([[0, *roi]], **like)
    output = ps_roi_pool(image, rois, output_size=bins, spatial_scale=scale)
    assert_close(output[0, 0], torch.tensor(expected, **like))


def test_exact_rois_by_hand(device, assert_close):
    """Without rounding, 0.5 .. 2.5 touches pixels 0, 1, 2; rounded to 1 .. 3, it touches 1, 2."""
    like = {"dtype": torch.float64, "device": device}
    image = torch.arange(4, **like).expand(1, 1, 4, 4)
    rois = torch.tensor([[0, 0.5, 0.5, 2.5, 2.5]], **like)
    for round_rois, expected in ((False, 1.0), (True, 1.5)):
        output = ps_roi_pool(image, rois, output_size=1, spatial_scale=1.0, round_rois=round_rois)
        assert_close(output, torch.full_like(output, expected))


def test_each_bin_has_its_channel(device):
    """Input channel (c*bins_h + i)*bins_w + j goes to output channel c, bin (i, j)."""
    image = torch.arange(12.0, device=device).view(1, 12, 1, 1).expand(-1, -1, 6, 6)
    rois = torch.tensor([[0.0, 1, 1, 5, 5]], device=device)
    output = ps_roi_pool(image, rois, output_size=(2, 3), spatial_scale=1.0)
    assert torch.equal(output, torch.arange(12.0, device=device).view(1, 2, 2, 3))


def test_gradient_by_hand(device, assert_close):
    """The last bin of the whole 4x4 map spreads its gradient over the last four pixels."""
    image = torch.zeros(1, 4, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], dtype=torch.float64, device=device)
    ps_roi_pool(image, rois, output_size=2, spatial_scale=1.0)[0, 0, 1, 1].backward()
    expected = torch.zeros_like(image)
    expected[0, 3, 2:, 2:] = 0.25
    assert_close(image.grad, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_layout(channels_last, device, assert_same):
    image, rois = make_inputs(device=device)
    arguments = {"output_size": (3, 2), "spatial_scale": 0.26}
    expected = value_and_gradient(ps_roi_pool, image, rois, **arguments)
    image = image.detach()
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    else:
        image = torch.stack([image, image], dim=-1)[..., 0]
    assert not image.is_contiguous()
    image.requires_grad_()
    actual = value_and_gradient(ps_roi_pool, image, rois.T.contiguous().T, **arguments)
    assert_same(actual, expected)


def test_results_do_not_depend_on_threads(threads):
    image, rois = make_inputs(images=2, rois=300, top_channels=70, dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(
            value_and_gradient(ps_roi_pool, image, rois, output_size=(3, 2), spatial_scale=0.26)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9])
def test_wild_boxes(value, device):
    image, rois = make_inputs(rois=4, dtype=torch.float32, device=device)
    for place in range(1, 5):
        wild = rois.clone()
        wild[:, place] = value
        for tensor in value_and_gradient(
            ps_roi_pool, image, wild, output_size=(3, 2), spatial_scale=0.26
        ):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("index", [-1, 3, 0.5, -0.5, float("nan"), float("inf"), 1e30])
def test_image_index_out_of_range(index):
    image, rois = make_inputs(images=3)
    rois[2, 0] = index
    with pytest.raises(RuntimeError, match=r"rois\[2\] names image .* input holds 3 images"):
        ps_roi_pool(image, rois, output_size=(3, 2), spatial_scale=0.25)


def wrong(**changes) -> dict:
    image, rois = (tensor.detach() for tensor in make_inputs())
    call = {"input": image, "rois": rois, "output_size": (3, 2), "spatial_scale": 0.25}
    return {**call, **{n: c(call[n]) if callable(c) else c for n, c in changes.items()}}


@pytest.mark.parametrize(
    "call, message",
    [
        (wrong(input=lambda t: t[0]), r"input must be \(N, C, H, W\).*got shape \(24, 13, 9\)"),
        (wrong(input=lambda t: t[:, :23]), r"input \(3, 23, 13, 9\) has 23 channels.* 6 bins"),
        (
            wrong(input=lambda t: t.int()),
            r"input is torch.int32, but float32, float64, float16",
        ),
        (wrong(rois=lambda t: t[0]), r"rois must be \(R, 5\).*\(5,\) for input \(3, 24, 13, 9\)"),
        (wrong(rois=lambda t: t.float()), r"rois is torch.float32 but input is torch.float64"),
        (wrong(output_size=(3, -1)), r"output_size is an int or .* got \(3, -1\)"),
    ],
)
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError, match=f"ps_roi_pool: .*{message}"):
        ps_roi_pool(**call)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.zeros(5, 4)}, r"rois must be \(R, 5\), got shape \[5, 4\]"),
        ({"output_size": [5, 2]}, "not a multiple of the 10 bins"),
        ({"output_size": [0, 2]}, "must be at least 1 and below"),
        ({"rois": torch.zeros(5, 5)}, "rois is Float but input Double"),
    ],
)
def test_operator_protects_memory(change, message):
    """The registered operator checks sizes, since it can be called without the public function."""
    with pytest.raises(RuntimeError, match=message):
        FORWARD(**{**every_argument(ps_roi_pool, **wrong()), **change})


@pytest.mark.parametrize(
    "input_size",
    [
        [-1, 6, 4, 4],
        [-(2**63), 6, 4, 4],
        [2**31, 6, 4, 4],
        [2**63 - 1, 6, 4, 4],
        [1, 6 * 2**59, 4, 4],
        [0, 6 * 2**59, 4, 4],
        [2**30, 6 * 2**30, 1, 1],
        [1, -6, 4, 4],
        [1, 6, 2**24, 1],
    ],
)
@pytest.mark.parametrize("rois", [0, 1])
def test_backward_checks_the_size_that_it_is_given(input_size, rois):
    grad, boxes = torch.zeros(rois, 1, 3, 2), torch.zeros(rois, 5)
    arguments = {"output_size": [3, 2], "spatial_scale": 1.0, "round_rois": True}
    with pytest.raises(RuntimeError, match="ps_roi_pool: input .* (size|C, H or W|side of 2.24)"):
        BACKWARD(grad, boxes, input_size=input_size, channels_last=False, **arguments)
