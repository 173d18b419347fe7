"""torch.func's transforms of operators and layers, against torch.autograd and Python loops."""

import pytest
import torch
from torch import func

from d2_deformable import ops
from d2_deformable.layers import DeformConv2d, DeformRoIAlign, DeformRoIPool, PSRoIPredictor

POOL = {"output_size": 2, "spatial_scale": 0.25}


def random(*shape, device="cpu") -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, device=device)


def make_rois(*shape, images, device="cpu") -> torch.Tensor:
    """Random RoIs (*shape, 5) on any of the images."""
    corner = 10 * torch.rand(*shape, 2, dtype=torch.float64, device=device)
    side = 5 + 15 * torch.rand(*shape, 2, dtype=torch.float64, device=device)
    index = torch.randint(images, (*shape, 1), device=device).double()
    return torch.cat([index, corner, corner + side], dim=-1)


def conv(input, offset, weight, bias, mask):
    arguments = {"padding": 1, "mask": mask, "border": "legacy"}
    return ops.deform_conv2d(input, offset, weight, bias, **arguments)


def deform_pool(input, rois, offset):
    return ops.deform_roi_pool(input, rois, offset, group_size=2, **POOL)


def deform_pool_in_place(input, rois):
    return ops.deform_roi_pool(input, rois, samples_per_part=3, **POOL)


def align(input, rois, offset):
    return ops.deform_roi_align(input, rois, offset, **POOL)


def align_in_place(input, rois):
    return ops.deform_roi_align(input, rois, sampling_ratio=2, **POOL)


def ps_pool(input, rois):
    return ops.ps_roi_pool(input, rois, **POOL)


SHAPES = {  # 2 images, 4 channels, 3 RoIs; None: RoIs
    conv: [(2, 4, 5, 6), (2, 36, 5, 6), (4, 2, 3, 3), (4,), (2, 18, 5, 6)],
    deform_pool: [(2, 8, 5, 6), None, (3, 4, 3, 1)],
    deform_pool_in_place: [(2, 4, 5, 6), None],
    align: [(2, 3, 5, 6), None, (3, 2, 2, 2)],
    align_in_place: [(2, 3, 5, 6), None],
    ps_pool: [(2, 8, 5, 6), None],
}
FUNCTIONS = pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__name__)


def make_arguments(function, batch=None, in_dims=None, device="cpu") -> list:
    """The arguments of one call; those with an in_dim get another dimension of size `batch`."""
    arguments = []
    for shape, dim in zip(SHAPES[function], in_dims or [None] * 5):
        size = () if dim is None else (batch,)
        if shape is None:
            tensor = make_rois(*size, 3, images=2, device=device)
        else:
            tensor = random(*size, *shape, device=device)
        arguments.append(tensor if dim is None else tensor.movedim(0, dim))
    return arguments


def differentiable(function) -> tuple:
    """The positions of arguments that have a gradient."""
    return tuple(k for k, shape in enumerate(SHAPES[function]) if shape is not None)


def loss(function):
    def total(*arguments):
        output = function(*arguments)
        weights = torch.cos(torch.arange(output.numel(), device=output.device)).view(output.shape)
        return (weights * output * output).sum()

    return total


def hessian_by_autograd(function, arguments):
    places = differentiable(function)

    def of(*leaves):
        replaced = dict(zip(places, leaves, strict=True))
        return loss(function)(*(replaced.get(k, a) for k, a in enumerate(arguments)))

    return torch.autograd.functional.hessian(of, tuple(arguments[k] for k in places))


@FUNCTIONS
def test_grad_vjp_and_jacrev(function, device, assert_close):
    arguments, places = make_arguments(function, device=device), differentiable(function)
    leaves = [arguments[k].requires_grad_() for k in places]
    expected = torch.autograd.grad(loss(function)(*arguments), leaves)
    arguments = [a.detach() for a in arguments]
    assert_close(func.grad(loss(function), argnums=places)(*arguments), expected)
    assert_close(func.jacrev(loss(function), argnums=places)(*arguments), expected)
    value, pull = func.vjp(loss(function), *arguments)
    gradients = pull(torch.ones_like(value))
    assert_close([gradients[k] for k in places], expected)
    assert not any(g.any() for k, g in enumerate(gradients) if k not in places)


@FUNCTIONS
def test_hessian(function, device, assert_close):
    """Forward over reverse, reverse over reverse, reverse over forward."""
    arguments, places = make_arguments(function, device=device), differentiable(function)
    if function is conv:  # one tap, to be small and fast
        shapes = (1, 2, 2, 2), (1, 2, 4, 4), (2, 2, 1, 1), (2,), (1, 1, 4, 4)
        arguments = [random(*shape, device=device) for shape in shapes]
    else:  # two rows and columns of the map, two RoIs
        arguments = [arguments[0][:, :, :2, :2], *(a[:2] for a in arguments[1:])]
    expected = hessian_by_autograd(function, arguments)
    for outer, inner in (
        (func.jacfwd, func.jacrev),
        (func.jacrev, func.jacrev),
        (func.jacrev, func.jacfwd),
    ):
        actual = outer(inner(loss(function), argnums=places), argnums=places)(*arguments)
        for mine, row in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, row, rtol=1e-8, atol=1e-8)


@FUNCTIONS
def test_jvp(function, device, assert_close):
    arguments, places = make_arguments(function, device=device), differentiable(function)
    tangents = [torch.randn_like(a) * (k in places) for k, a in enumerate(arguments)]
    _, actual = func.jvp(function, tuple(arguments), tuple(tangents))
    _, pull = func.vjp(function, *arguments)
    jacobians = func.jacrev(function, argnums=places)(*arguments)
    expected = sum(
        torch.tensordot(jacobian, tangents[k], tangents[k].dim())
        for k, jacobian in zip(places, jacobians, strict=True)
    )
    assert_close(actual, expected)


IN_DIMS = [
    (conv, (0, 0, None, None, 0)),
    (conv, (1, 4, None, None, None)),
    (conv, (None, 0, None, None, None)),
    (conv, (0, 0, 0, 0, 0)),
    (conv, (None, None, 2, None, None)),
    (conv, (2, None, None, 1, None)),
    (deform_pool, (0, 0, 0)),
    (deform_pool, (3, None, None)),
    (deform_pool, (None, 1, 2)),
    (deform_pool_in_place, (0, None)),
    (deform_pool_in_place, (None, 2)),
    (align, (0, 0, 0)),
    (align, (3, None, None)),
    (align, (None, 1, 2)),
    (align_in_place, (None, 2)),
    (ps_pool, (0, 0)),
    (ps_pool, (1, None)),
    (ps_pool, (None, 0)),
]
VMAP = pytest.mark.parametrize(
    "function, in_dims", IN_DIMS, ids=[f"{f.__name__} {dims}" for f, dims in IN_DIMS]
)


def loop(function, in_dims, arguments, batch):
    """The definition of torch.vmap: a loop over the mapped dimension."""
    results = [
        function(*(a if d is None else a.select(d, b) for a, d in zip(arguments, in_dims)))
        for b in range(batch)
    ]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack(results)


@VMAP
@pytest.mark.filterwarnings("error:.*batching rule")
def test_vmap(function, in_dims, device, assert_close):
    arguments = make_arguments(function, 3, in_dims, device)
    expected = loop(function, in_dims, arguments, 3)
    assert_close(func.vmap(function, in_dims)(*arguments), expected)
    moved = func.vmap(function, in_dims, out_dims=2, randomness="different")(*arguments)
    assert_close(moved.movedim(2, 0), expected)
    in_chunks = func.vmap(function, in_dims, chunk_size=2)(*arguments)
    assert_close(in_chunks, expected)


@VMAP
@pytest.mark.filterwarnings("error:.*batching rule")
def test_gradients_per_sample(function, in_dims, device, assert_close):
    """Gradients of all arguments, including those that samples share."""
    arguments = make_arguments(function, 3, in_dims, device)
    gradients = func.grad(loss(function), argnums=differentiable(function))
    actual = func.vmap(gradients, in_dims)(*arguments)
    assert_close(actual, loop(gradients, in_dims, arguments, 3))


@VMAP
def test_gradients_through_vmap(function, in_dims, device, assert_close):
    arguments = make_arguments(function, 3, in_dims, device)
    places = differentiable(function)
    leaves = [arguments[k].requires_grad_() for k in places]
    actual = torch.autograd.grad(loss(func.vmap(function, in_dims))(*arguments), leaves)
    by_loop = loss(lambda *arguments: loop(function, in_dims, arguments, 3))(*arguments)
    assert_close(actual, torch.autograd.grad(by_loop, leaves))


@pytest.mark.parametrize("function", [conv, deform_pool, align, ps_pool])
def test_nested_vmap_and_second_order(function, device, assert_close):
    in_dims = (0,) + (None,) * (len(SHAPES[function]) - 1)
    arguments = make_arguments(function, 3, in_dims, device)

    def second(*arguments):
        gradient = func.grad(loss(function))
        return func.grad(lambda *a: gradient(*a).square().sum())(*arguments)

    assert_close(func.vmap(second, in_dims)(*arguments), loop(second, in_dims, arguments, 3))
    twice = [torch.stack([arguments[0], -arguments[0]]), *arguments[1:]]
    actual = func.vmap(func.vmap(function, in_dims), in_dims)(*twice)
    expected = torch.stack(
        [loop(function, in_dims, [half, *arguments[1:]], 3) for half in twice[0]]
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_images_in_half_precision(dtype, device):
    """A mapped dimension gives image indices that these types cannot represent."""
    images = torch.arange(3000.0, device=device).remainder(100).to(dtype)
    images = images.view(3000, 1, 1, 1, 1).expand(3000, 1, 1, 2, 2)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]], device=device, dtype=dtype)
    arguments = {"output_size": 1, "spatial_scale": 1.0}
    for op in (ops.deform_roi_pool, ops.deform_roi_align, ops.ps_roi_pool):
        pooled = func.vmap(lambda image, op=op: op(image, rois, **arguments))(images)
        assert torch.equal(pooled.flatten(), images[:, 0, 0, 0, 0])


def layers() -> dict:
    rois = make_rois(3, images=2)
    return {
        "DeformConv2d": (DeformConv2d(4, 6, 3, padding=1, modulated=True), ()),
        "DeformRoIPool": (DeformRoIPool(4, 2), (rois, 0.25)),
        "DeformRoIAlign": (DeformRoIAlign(4, 2, hidden_channels=3), (rois, 0.25)),
        "PSRoIPredictor": (PSRoIPredictor(4, 3, 2, spatial_scale=0.25), (rois,)),
        "deformable PSRoIPredictor": (
            PSRoIPredictor(4, 3, 2, spatial_scale=0.25, offset_classes=3),
            (rois,),
        ),
    }


@pytest.mark.parametrize("name", layers())
def test_layers(name, device, assert_close):
    """functional_call, per-sample parameter gradients, and a Hessian-vector product."""
    layer, arguments = layers()[name]
    layer = layer.double().to(device)
    arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    parameters = {key: torch.randn_like(p) / 10 for key, p in layer.named_parameters()}
    samples = random(3, 2, 4, 5, 6, device=device)

    def total(parameters, x):
        return func.functional_call(layer, parameters, (x, *arguments)).square().sum()

    gradients = func.grad(total)
    actual = func.vmap(gradients, (None, 0))(parameters, samples)
    expected = [gradients(parameters, x) for x in samples]
    for key in parameters:
        assert_close(actual[key], torch.stack([gradient[key] for gradient in expected]))

    direction = {key: torch.randn_like(p) for key, p in parameters.items()}

    def slope(parameters):
        gradient = gradients(parameters, samples[0])
        return sum((gradient[key] * direction[key]).sum() for key in gradient)

    by_reverse = func.grad(slope)(parameters)
    _, by_forward = func.jvp(lambda p: gradients(p, samples[0]), (parameters,), (direction,))
    for key in parameters:
        torch.testing.assert_close(by_forward[key], by_reverse[key], rtol=1e-8, atol=1e-8)
