"""All poolings, fuzzed with coordinates that are not finite, huge, or in the wrong order."""

import itertools

import pytest
import torch
from ops.arguments import every_argument

from d2_deformable import ops
from d2_deformable.ops import _composite as composite

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
RAW = torch.ops.d2_deformable


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
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 400), marks=pytest.mark.slow)])
def test_wild_rois_end_in_zeros_or_nan_and_leave_others_alone(name, dtype, seeds, device):
    for seed in seeds:
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


class Call:
    """A pooling's kernels and composites, and the arguments of a wild call to both."""

    def __init__(self, name, dtype, seed, device):
        function, arguments, with_offset = POOLINGS[name]
        self.op = function.__name__
        _, self.tensors, self.is_wild = make_call(name, dtype, seed, device)
        names = ("input", "rois", "offset")[: len(self.tensors)]
        tensors = dict(zip(names, self.tensors, strict=True))
        every = every_argument(function, **tensors, **arguments)
        self.keywords = {k: v for k, v in every.items() if k not in ("input", "rois", "offset")}
        self.no_offset = () if with_offset or function is ops.ps_roi_pool else (None,)

    def leaves(self):
        image, rois, *offset = self.tensors
        return [t.detach().requires_grad_() for t in (image, *offset)]

    def pool(self, implementation, image, *offset):
        function = getattr(implementation, self.op)
        return function(image, self.tensors[1], *offset, *self.no_offset, **self.keywords)

    def backward(self, implementation, grad, image, *offset):
        """Gradients with respect to image and offset."""
        function = getattr(implementation, f"{self.op}_backward")
        rois = self.tensors[1]
        if self.op == "ps_roi_pool":
            sizes = {"input_size": list(image.shape), "channels_last": False}
            return [function(grad, rois, **sizes, **self.keywords)]
        gradients = function(grad, image, rois, *offset, *self.no_offset, **self.keywords)
        return list(gradients[: 1 + len(offset)])


def tolerant(name):
    """Type and tolerance. ps_roi_pool's composite rounds as the kernels do in float32 alone: with
    float64 a bin that ends at a whole pixel may have one pixel more."""
    dtype = torch.float32 if name == "position-sensitive" else torch.float64
    tolerance = 1e-4 if name == "position-sensitive" else 1e-9
    return dtype, {"rtol": tolerance, "atol": tolerance, "equal_nan": True}


@EVERY
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 200), marks=pytest.mark.slow)])
def test_composites_give_the_same_answer(name, seeds, device):
    dtype, close = tolerant(name)
    for seed in seeds:
        call = Call(name, dtype, seed, device)
        leaves = call.leaves()
        output, of_composite = call.pool(RAW, *leaves), call.pool(composite, *leaves)
        torch.testing.assert_close(of_composite, output, **close)
        grad = torch.randn_like(output)
        # A loss has NaN for bins of NaN. Bins that read nothing ignore it.
        nothing = (output.isnan() | (output == 0)).all(1, keepdim=True)
        expected = call.backward(RAW, grad, *leaves)
        assert all(gradient.isfinite().all() for gradient in expected)
        for given in (grad, torch.where(nothing, torch.nan, grad)):
            torch.testing.assert_close(call.backward(RAW, given, *leaves), expected, **close)
            torch.testing.assert_close(call.backward(composite, given, *leaves), expected, **close)
        gradients = torch.autograd.grad(of_composite, leaves, grad)
        torch.testing.assert_close(list(gradients), expected, **close)


@EVERY
def test_second_derivatives_leave_other_rois_alone(name, device):
    dtype, close = tolerant(name)
    for seed in range(12):
        results = []
        for keep in (slice(None), "tame"):
            call = Call(name, dtype, seed, device)
            keep = ~call.is_wild if keep == "tame" else keep
            image, *of_rois = call.tensors
            call.tensors = [image, *(t[keep] for t in of_rois)]
            leaves = call.leaves()
            output = call.pool(RAW, *leaves)
            first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
            total = sum(gradient.square().sum() for gradient in first[1:]) + first[0].sum()
            second = torch.autograd.grad(total, leaves)
            assert all(gradient.isfinite().all() for gradient in (*first, *second))
            results.append([*first[1:], *second[1:]])
        for every, tame in zip(*results, strict=True):
            torch.testing.assert_close(every[~call.is_wild], tame, **close)


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


@EVERY
@pytest.mark.parametrize("index", INDICES)
def test_a_wrong_image_index_is_an_error_of_the_raw_backward(name, index):
    call = Call(name, torch.float32, 0, "cpu")
    image, *offset = call.leaves()
    grad = torch.ones_like(call.pool(RAW, image, *offset))
    call.tensors[1][2, 0] = index
    with pytest.raises(RuntimeError, match=r"rois\[2\] names image .* but input holds 2 images"):
        call.backward(RAW, grad, image, *offset)


@EVERY
@pytest.mark.parametrize("index", INDICES)
def test_a_wrong_image_index_is_an_error_in_forward_mode(name, index):
    call = Call(name, torch.float32, 0, "cpu")
    image, *offset = call.tensors[:1] + call.tensors[2:]
    call.tensors[1][2, 0] = index
    with pytest.raises((IndexError, RuntimeError), match="out of (range|bounds)"):
        torch.func.jvp(lambda image: call.pool(RAW, image, *offset), (image,), (image,))


HUGE = 2**63 - 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rois", [0, 1])
@pytest.mark.parametrize(
    "size, message",
    [
        *(([n, 9, 8, 8], "negative or too large") for n in (-1, -(2**63), 2**31, HUGE)),
        ([2**31 - 1, 9, 1, 1], "must be at most 2.24"),
        ([1, HUGE // 9 * 9, 1, 1], "negative or too large"),
        ([1, 0, 8, 8], "empty C, H or W"),
        ([1, -9, 8, 8], "empty C, H or W"),
        ([1, 9, 8, -8], "empty C, H or W"),
        ([1, 9, 8, HUGE], "side of 2.24"),
        ([1, 9, 8], "must be .N, C, H, W"),
        ([], "must be .N, C, H, W"),
    ],
)
def test_input_sizes_of_the_raw_backward_are_checked(size, message, rois, channels_last):
    arguments = {"output_size": [3, 3], "spatial_scale": 1.0, "round_rois": True}
    with pytest.raises(RuntimeError, match=message):
        RAW.ps_roi_pool_backward(
            torch.ones(rois, 1, 3, 3),
            torch.zeros(rois, 5),
            input_size=size,
            channels_last=channels_last,
            **arguments,
        )


@pytest.mark.parametrize("side", [3e4, 1e9, 1e30])
@pytest.mark.parametrize("sign", [1, -1], ids=["", "inverted"])
def test_the_work_of_gigantic_rois_is_bounded_by_the_map(side, sign, device):
    """Their bins have as many samples as pixels, of which few lie in the map."""
    image = torch.randn(1, 2, 40, 50, device=device, requires_grad=True)
    corners = torch.tensor([[0, -side, -side, side, side]]).repeat(50, 1)
    corners[:, 1:] *= sign
    offset = torch.randn(50, 2, 7, 7, device=device, requires_grad=True)
    pool = {"output_size": 7, "spatial_scale": 0.5}
    output = ops.deform_roi_align(image, corners.to(device), offset, **pool)
    output.sum().backward()
    assert all(t.isfinite().all() for t in (output, image.grad, offset.grad))
