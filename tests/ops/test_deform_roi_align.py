"""deform_roi_align against the slow reference, RoIAlign, and numbers computed by hand."""

import pytest
import torch
from ops.arguments import every_argument
from torch.autograd import gradcheck
from torch.library import opcheck
from torchvision.ops import roi_align

import reference
from d2_deformable.ops import deform_roi_align

FORWARD = torch.ops.d2_deformable.deform_roi_align.default
BACKWARD = torch.ops.d2_deformable.deform_roi_align_backward.default


def make_inputs(
    images=2, rois=5, channels=3, bins=(3, 3), size=(13, 9), dtype=torch.float64, device="cpu"
):
    """Input, RoIs (some reach beyond a map of 13 x 9 pixels at scale 1/4) and an offset."""
    like = {"dtype": dtype, "device": device}
    image = torch.randn(images, channels, *size, **like)
    corner = torch.rand(rois, 2, **like) * 40 - 6
    index = torch.randint(max(images, 1), (rois, 1)).to(**like)
    boxes = torch.cat([index, corner, corner + torch.rand(rois, 2, **like) * 40], dim=1)
    return image.requires_grad_(), boxes, torch.randn(rois, 2, *bins, **like).requires_grad_()


def values_and_gradients(function, image, rois, offset, **arguments) -> list:
    output = function(image, rois, offset, **arguments)
    weights = torch.cos(torch.arange(output.numel(), device=output.device)).to(output.dtype)
    weights[::5] = 0  # kernels skip zero gradients, and no others
    total = (output * weights.view(output.shape)).sum()
    leaves = [image] if offset is None else [image, offset]
    return [output, *torch.autograd.grad(total, leaves)]


CASES = [
    pytest.param({"output_size": 3}, id="adaptive"),
    pytest.param({"output_size": (2, 4), "gamma": 0.3}, id="oblong"),
    pytest.param({"output_size": 3, "sampling_ratio": 2}, id="two samples"),
    pytest.param({"output_size": 1, "gamma": 2.0}, id="far away"),
]


@pytest.mark.parametrize("arguments", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(arguments, dtype, device, assert_close):
    bins = reference.pair(arguments["output_size"])
    inputs = make_inputs(bins=bins, dtype=dtype, device=device)
    arguments = arguments | {"spatial_scale": 0.25}
    for offset in (inputs[2], None):
        given = (*inputs[:2], offset)
        actual = values_and_gradients(deform_roi_align, *given, **arguments)
        assert_close(actual, values_and_gradients(reference.deform_roi_align, *given, **arguments))


SHAPES = {  # sizes, and the scale
    "one image": ({"images": 1}, 0.25),
    "65 images": ({"images": 65, "rois": 70, "size": (5, 4)}, 0.1),
    "many channels": ({"channels": 130}, 0.25),
    "one channel": ({"channels": 1}, 0.25),
    "several blocks of channels": ({"channels": 37, "size": (90, 100), "rois": 2}, 0.25),
    "one pixel": ({"size": (1, 1)}, 0.03),
    "one row": ({"size": (1, 23)}, 0.1),
}


@pytest.mark.parametrize("sampling_ratio", [0, 3])
@pytest.mark.parametrize("sizes, scale", SHAPES.values(), ids=SHAPES)
def test_shapes(sizes, scale, sampling_ratio, device, assert_close):
    inputs = make_inputs(**sizes, device=device)
    arguments = {"output_size": 3, "spatial_scale": scale, "sampling_ratio": sampling_ratio}
    actual = values_and_gradients(deform_roi_align, *inputs, **arguments)
    assert_close(actual, values_and_gradients(reference.deform_roi_align, *inputs, **arguments))


@pytest.mark.parametrize("with_offset", [False, True])
def test_opcheck(with_offset, device):
    image, rois, offset = make_inputs(bins=(3, 2), device=device)
    offset = offset if with_offset else None
    arguments = {"output_size": [3, 2], "spatial_scale": 0.26, "sampling_ratio": 0, "gamma": 0.2}
    opcheck(FORWARD, (image, rois, offset), arguments)
    grad = torch.randn_like(deform_roi_align(image, rois, offset, **arguments))
    offset = offset.detach() if with_offset else None
    opcheck(BACKWARD, (grad, image.detach(), rois, offset), arguments)


def test_results_do_not_depend_on_threads(threads):
    inputs = make_inputs(rois=60, channels=70, dtype=torch.float32)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(
            values_and_gradients(deform_roi_align, *inputs, output_size=3, spatial_scale=0.25)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("arguments", CASES)
def test_gradcheck(arguments):
    image, rois, offset = make_inputs(rois=3, bins=reference.pair(arguments["output_size"]))
    arguments = arguments | {"spatial_scale": 0.25}
    assert gradcheck(lambda x, o: deform_roi_align(x, rois, o, **arguments), (image, offset))
    # Each input by itself.
    assert gradcheck(lambda x: deform_roi_align(x, rois, offset.detach(), **arguments), image)
    fixed = image.detach()
    assert gradcheck(lambda o: deform_roi_align(fixed, rois, o, **arguments), offset)


def test_without_offsets_it_is_roi_align(device):
    image, rois, offset = make_inputs(dtype=torch.float32, device=device)
    expected = roi_align(image, rois, 3, 0.25, 0, True)
    arguments = {"output_size": 3, "spatial_scale": 0.25}
    for shift in (None, torch.zeros_like(offset)):
        actual = deform_roi_align(image, rois, shift, **arguments)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_boxes_far_larger_than_the_map_are_those_of_roi_align(sampling_ratio, device):
    """Only samples on the map are visited."""
    image, rois, _ = make_inputs(device=device)
    rois[0, 1:] = rois.new_tensor([-3000.0, -700, 5000, 900])
    rois[1, 1:] = rois.new_tensor([-9.0, 10, 20, 20000])
    arguments = {"output_size": 3, "spatial_scale": 0.25, "sampling_ratio": sampling_ratio}
    expected = roi_align(image, rois, 3, 0.25, sampling_ratio, True)
    torch.testing.assert_close(deform_roi_align(image, rois, **arguments), expected)


def test_inverted_boxes(device):
    """With a number of samples they are mirrored; otherwise they have none."""
    image, rois, offset = make_inputs(device=device)
    inverted = rois[:, [0, 3, 4, 1, 2]]
    arguments = {"output_size": 3, "spatial_scale": 0.25}
    fixed = arguments | {"sampling_ratio": 2}
    mirrored = deform_roi_align(image, rois, -offset.flip(2, 3), **fixed).flip(2, 3)
    torch.testing.assert_close(deform_roi_align(image, inverted, offset, **fixed), mirrored)
    results = values_and_gradients(deform_roi_align, image, inverted, offset, **arguments)
    assert not any(result.any() for result in results)


def test_slopes_at_integers_and_at_the_border(device):
    """Right-hand derivatives; 0 where the border is replicated, also exactly at it."""
    image = torch.tensor([1.0, 2, 4, 8], device=device).expand(1, 1, 4, 4)
    rois = torch.tensor([[0.0, 0, 0, 1, 1]], device=device)  # samples pixel (0, 0)

    def slope(dx):
        offset = torch.tensor([1.0, dx], device=device).view(1, 2, 1, 1).requires_grad_()
        pooled = deform_roi_align(
            image, rois, offset, output_size=1, spatial_scale=1.0, gamma=1.0, sampling_ratio=1
        )
        (gradient,) = torch.autograd.grad(pooled.sum(), offset)
        assert gradient[0, 0] == 0
        return gradient[0, 1].item()

    places = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert [slope(dx) for dx in places] == [0, 0, 0, 1, 2, 4, 4, 0, 0, 0]


@pytest.mark.parametrize("start", [0.0, 3.3, 107.7, 1301.9])
def test_bins_of_whole_cells_keep_their_samples(start):
    """A box clipped to the image often has bins of exactly 6 cells. As separate boxes in float32,
    some would become 6.00001 cells high and get 7 rows of samples."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 64, 400, generator=generator)
    rois = torch.tensor([[0, start, 1.1, start + 4 * 42, 1.1 + 4 * 42]])
    offset = torch.randn(1, 2, 7, 7, generator=generator)
    arguments = {"output_size": 7, "spatial_scale": 0.25}
    actual = deform_roi_align(image, rois, offset, **arguments)
    expected = reference.deform_roi_align(image, rois, offset, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_offsets_are_dy_then_dx_in_units_of_gamma_and_the_roi():
    image = torch.arange(20.0).expand(1, 1, 20, 20)  # grows to the right, constant downwards
    rois = torch.tensor([[0, 80.0, 80.0, 160.0, 120.0]])
    arguments = {"output_size": 2, "spatial_scale": 1 / 16}
    plain = deform_roi_align(image, rois, **arguments)
    shift = torch.zeros(1, 2, 2, 2)
    shift[:, 0] = 1
    torch.testing.assert_close(deform_roi_align(image, rois, shift, **arguments), plain)
    moved = deform_roi_align(image, rois, shift.flip(1), **arguments)
    torch.testing.assert_close(moved, plain + 0.1 * 5)


def test_border():
    """Within a pixel of the map the border is replicated. Beyond, samples are zero and count."""
    image = torch.ones(1, 1, 4, 4)
    rois = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])

    def pooled(dy, **arguments):
        offset = torch.tensor([dy, 0.0]).view(1, 2, 1, 1)
        arguments = {"output_size": 1, "spatial_scale": 1.0, "gamma": 0.25} | arguments
        return deform_roi_align(image, rois, offset, **arguments).item()

    # Rows are at dy + 0, 1, 2, 3; those from -1 to 4 have the value 1.
    assert [pooled(dy) for dy in (0.0, -1.0, -1.5, 1.0, 2.0, 9.0)] == [1, 1, 0.75, 1, 0.75, 0]


def test_no_rois_no_images_and_empty_boxes(device):
    image, rois, offset = make_inputs(images=0, rois=0, device=device)
    results = values_and_gradients(
        deform_roi_align, image, rois, offset, output_size=3, spatial_scale=0.25
    )
    assert [r.shape for r in results] == [(0, 3, 3, 3), image.shape, offset.shape]
    image, rois, offset = make_inputs(dtype=torch.float32, device=device)
    arguments = {"output_size": 3, "spatial_scale": 0.25}
    none = deform_roi_align(image, rois[:0], offset[:0], **arguments)
    assert none.shape == (0, 3, 3, 3)
    none.sum().backward()
    assert not image.grad.any()
    empty = rois.clone()
    empty[:, 3:] = empty[:, 1:3]
    output = deform_roi_align(image, empty, offset, **arguments)
    assert not output.any()
    gradients = torch.autograd.grad(output.sum(), [image, offset])
    assert not any(g.any() for g in gradients)


def test_a_nan_offset_gives_nan(device):
    image, rois, offset = make_inputs(dtype=torch.float32, device=device)
    with torch.no_grad():
        offset[1, 0, 2, 2] = torch.nan
        offset[2, 1, 0, 0] = torch.inf
    output = deform_roi_align(image, rois, offset, output_size=3, spatial_scale=0.25)
    assert output[1, :, 2, 2].isnan().all() and output.isnan().sum() == 3
    assert not output[2, :, 0, 0].any()
    gradients = torch.autograd.grad(output.sum(), [image, offset])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype, device, assert_close):
    image, rois, offset = make_inputs(dtype=torch.float32, device=device)
    arguments = {"output_size": 3, "spatial_scale": 0.25}
    half = image.detach().to(dtype)
    expected = deform_roi_align(half.float(), rois, offset, **arguments).to(dtype)
    assert torch.equal(deform_roi_align(half, rois, offset, **arguments), expected)
    with torch.autocast(device.type, dtype=dtype):
        output = deform_roi_align(half, rois, offset, **arguments)
        assert output.dtype == dtype and torch.equal(output, expected)
        full = deform_roi_align(image, rois, offset, **arguments)
    assert full.dtype == torch.float32
    full.sum().backward()
    assert offset.grad.dtype == torch.float32


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic, device):
    inputs = make_inputs(device=device)

    def gradients(function):
        output = function(*inputs, output_size=3, spatial_scale=0.25)
        return output, *torch.autograd.grad(output.square().sum(), (inputs[0], inputs[2]))

    compiled = torch.compile(deform_roi_align, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(gradients(compiled), gradients(deform_roi_align))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.zeros(5, 4)}, r"rois must be \(R, 5\)"),
        ({"offset": torch.zeros(5, 2, 3, 2)}, r"offset is \(5, 2, 3, 2\), expected \(5, 2, 3, 3\)"),
        ({"input": torch.zeros(3, 13, 9)}, r"input must be \(N, C, H, W\)"),
        ({"output_size": 0}, "output_size is an int or"),
    ],
)
def test_bad_arguments_say_what_to_do(change, message):
    image, rois, offset = make_inputs(dtype=torch.float32)
    arguments = {"input": image, "rois": rois, "offset": offset, "output_size": 3} | change
    with pytest.raises(ValueError, match=message):
        deform_roi_align(**arguments, spatial_scale=0.25)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.zeros(5, 4)}, r"rois must be \(R, 5\), got shape \[5, 4\]"),
        ({"offset": torch.zeros(5, 4, 3, 3)}, r"offset must have shape \[5, 2, 3, 3\]"),
        ({"offset": torch.zeros(4, 2, 3, 3)}, r"offset must have shape \[5, 2, 3, 3\]"),
        ({"offset": torch.zeros(5, 2, 3, 3).double()}, "offset is Double but input Float"),
        ({"output_size": [3, 0]}, "must be at least 1 and below"),
        ({"sampling_ratio": -1}, "sampling_ratio must be 0 to 1048576, got -1"),
    ],
)
def test_operator_protects_memory(change, message):
    """The registered operator checks sizes, since it can be called without the public function."""
    image, rois, offset = (t.detach() for t in make_inputs(dtype=torch.float32))
    call = {"input": image, "rois": rois, "offset": offset, "output_size": 3}
    call = every_argument(deform_roi_align, **call, spatial_scale=0.25)
    with pytest.raises(RuntimeError, match=message):
        FORWARD(**{**call, **change})
