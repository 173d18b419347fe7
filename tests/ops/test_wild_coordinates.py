"""All poolings, fuzzed with coordinates that are not finite, huge, or in the wrong order."""

import itertools

import pytest
import torch

from d2_deformable import ops

NAN, INF = float("nan"), float("inf")
WILD = [NAN, INF, -INF, 1e30, -1e30, 1e19, -1e19, 3e9, -3e9, 70000.0]
INDICES = [-1.0, 2.0, 0.5, NAN, INF, -INF, 1e30, -1e30, 1e9]
POOL = {"output_size": 3, "spatial_scale": 0.25}
# Name, operator, arguments, whether it has an offset.
POOLINGS = {
    "pool": (ops.deform_roi_pool, POOL, True),
    "pool, class per channel": (ops.deform_roi_pool, {**POOL, "group_size": 3}, True),
    "average pool": (ops.deform_roi_pool, {**POOL, "round_rois": False}, False),
    **{
        f"align, ratio {ratio}": (ops.deform_roi_align, {**POOL, "sampling_ratio": ratio}, True)
        for ratio in (0, 1, 2, 7)
    },
    "plain align": (ops.deform_roi_align, POOL, False),
    "position-sensitive": (ops.ps_roi_pool, POOL, False),
}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EVERY = pytest.mark.parametrize("name", POOLINGS)


def make_call(name, dtype, seed, device):
    """The pooling, its tensors, and which of the six RoIs have a wild coordinate."""
    function, arguments, with_offset = POOLINGS[name]
    random = torch.Generator().manual_seed(seed)
    number = 6
    image = torch.randn(2, 9, 7, 8, generator=random)
    index = torch.randint(2, (number, 1), generator=random)
    corner = torch.rand(number, 2, generator=random) * 30 - 5
    side = torch.rand(number, 2, generator=random) * 20
    rois = torch.cat([index, corner, corner + side], dim=1)
    offset = torch.randn(number, 2, 3, 3, generator=random)
    is_wild = torch.rand(number, generator=random) < 0.5
    for roi in is_wild.nonzero().flatten().tolist():
        values = torch.tensor(WILD)[torch.randint(len(WILD), (4,), generator=random)]
        places = torch.rand(4, generator=random) < 0.4
        kind = int(torch.randint(3, (), generator=random))
        if kind == 0 or not with_offset:
            rois[roi, 1:] = torch.where(places, values, rois[roi, 1:])
        elif kind == 1:
            offset[roi].view(-1)[3 : 3 + 4] = values
        else:
            rois[roi, 1:] = rois[roi, [3, 4, 1, 2]]
            offset[roi, 0, 1, 1] = values[0]
    tensors = [image, rois, offset] if with_offset else [image, rois]
    tensors = [t.to(device, dtype) for t in tensors]
    return lambda *given: function(*given, **arguments), tensors, is_wild.to(device)


def run(function, image, rois, *offset):
    """Output, and gradients of image and offset."""
    leaves = [t.detach().requires_grad_() for t in (image, *offset)]
    output = function(leaves[0], rois, *leaves[1:])
    grad = torch.linspace(-1, 2, output[0:1].numel()).view(output[0:1].shape).expand_as(output)
    return output.detach(), *torch.autograd.grad(output, leaves, grad.to(output))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wild_rois_end_in_zeros_or_nan_and_leave_others_alone(name, dtype, device):
    for seed in range(12):
        function, tensors, is_wild = make_call(name, dtype, seed, device)
        output, *gradients = run(function, *tensors)
        image, *of_rois = tensors
        tame, _, *tame_offset = run(function, image, *(t[~is_wild] for t in of_rois))
        assert torch.equal(output[~is_wild], tame)
        for gradient, expected in zip(gradients[1:], tame_offset, strict=True):
            torch.testing.assert_close(gradient[~is_wild], expected)
        assert not output.isinf().any()
        assert output.abs().nan_to_num().max() <= image.abs().max()
        if "align" not in name:
            assert not output.isnan().any()
        assert all(gradient.isfinite().all() for gradient in gradients)


@EVERY
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_a_wrong_image_index_is_an_error(name, dtype):
    function, tensors, _ = make_call(name, dtype, 0, "cpu")
    for index, place in itertools.product(INDICES, (0, -1)):
        rois = tensors[1].clone()
        rois[place, 0] = index
        with pytest.raises(RuntimeError, match="names image .* but input holds 2 images"):
            function(tensors[0], rois, *tensors[2:])
    with pytest.raises(RuntimeError, match="but input holds 0 images"):
        function(tensors[0][:0], *tensors[1:])
