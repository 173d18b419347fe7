"""Fuzz target: every operator of d2_deformable.ops, with valid and with hostile arguments.

A case is an operator, its arguments and a way to call it. About half of the cases have valid
arguments: their results must have the documented shape, type and memory format, be finite where the
arguments are, and equal those of contiguous copies, of float32 (half precision) and of the
composites (float64). The others have one argument damaged; they end in a result or in an error that
users of torch expect, with a message.
"""

import random
from dataclasses import dataclass, field
from functools import partial

import torch
from ops.arguments import every_argument

from d2_deformable import ops
from d2_deformable.ops import _composite
from d2_deformable.ops._checks import is_channels_last
from fuzz import _tensors as tensors

RAW = torch.ops.d2_deformable
EXPECTED = (RuntimeError, ValueError, TypeError)
INF, NAN = float("inf"), float("nan")
SIDES = (1, 1, 2, 3, 5, 8, 13, 18)
CHANNELS = (1, 1, 2, 3, 4, 5, 16, 17, 33)
WILD = (NAN, INF, -INF, 1e30, -1e30, 1e19, 3e9, -3e9, 7e4, -1.0, 0.0, 0.5, 1e-30)
HOSTILE = (
    *(-1, 0, 1, 2, 3, 2**20, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32, 2**61, 2**62, 2**63 - 1),
    *(-(2**31), -(2**63), 2**63, 2**64, 10**30, True, 0.5, 1e-30, 1e30, NAN, INF, -INF),
    *(None, "", "zero", b"x", [], [1], [1, 2, 3], [1, -1], [0, 1], [2**24 - 1, 1], {}),
    *([2**24 - 1, 2**24 - 1], [2**62, 4], [2**63 - 1, 2**63 - 1], [2**64, 1], [None, 1]),
)
# A call may take what its arguments promise. Beyond that it must fail at once.
MOST, IMPOSSIBLE = 1 << 18, 1 << 43


@dataclass
class Case:
    operator: str
    arguments: dict  # of the public function, tensors first
    tame: bool = True  # coordinates are finite and not far away
    damage: str = ""
    size: list = field(default_factory=list)  # of the result, before any damage
    layouts: list = field(default_factory=list)

    @property
    def function(self):
        return getattr(ops, self.operator)

    def tensors(self) -> dict:
        return {k: v for k, v in self.arguments.items() if isinstance(v, torch.Tensor)}

    def with_tensors(self, change) -> dict:
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return {**self.arguments, **changed}

    def __str__(self):
        shown = {k: tensors.describe(v) for k, v in self.arguments.items()}
        return f"{self.operator}, {self.damage or 'valid'}, {self.layouts}: {shown}"


class Draw:
    """Choices made by bytes of a fuzzer or of hypothesis; beyond the last one, the first choice."""

    def __init__(self, data: bytes):
        self.data, self.used = data, 0

    def number(self, low: int, high: int) -> int:
        begin, count = self.used, ((high - low).bit_length() + 7) // 8
        self.used += count
        return low + int.from_bytes(self.data[begin : self.used], "little") % (high - low + 1)

    def among(self, values):
        return values[self.number(0, len(values) - 1)]

    def one_in(self, n: int) -> bool:
        return self.number(0, n - 1) == n - 1


def draw_map(draw) -> list[int]:
    """H and W."""
    if draw.one_in(60):
        return draw.among(([20000, 1], [1, 20000]))
    return [draw.among(SIDES), draw.among(SIDES)]


def draw_conv(draw, normal) -> dict:
    groups, group_channels = draw.number(1, 3), draw.among(CHANNELS)
    channels, outputs = groups * group_channels, groups * draw.among((1, 2, 3, 17))
    images, (height, width) = draw.number(0, 3), draw_map(draw)
    if max(height, width) > 100:
        channels, groups, group_channels, outputs = 2, 1, 2, outputs // groups
    kernel = [draw.number(1, 3), draw.number(1, 3)]
    stride, dilation = ([draw.number(1, 3), draw.number(1, 3)] for _ in range(2))
    padding, size = [], []
    for side, taps, step, gap in zip((height, width), kernel, stride, dilation, strict=True):
        reach = gap * (taps - 1) + 1
        pad = max(draw.number(0, 2), (reach - side + 1) // 2)
        padding.append(pad)
        size.append((side + 2 * pad - reach) // step + 1)
    offset_groups = draw.among([g for g in range(1, channels + 1) if channels % g == 0][:4])
    taps = kernel[0] * kernel[1]
    return {
        "input": normal(images, channels, height, width),
        "offset": normal(images, offset_groups * taps * 2, *size) * 2,
        "weight": normal(outputs, group_channels, *kernel),
        "bias": draw.among((None, normal(outputs))),
        "mask": draw.among((None, normal(images, offset_groups * taps, *size))),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "border": draw.among(ops.BORDERS),
    }


def draw_rois(draw, normal, images: int, size: list[int], scale: float):
    """RoIs that lie around the map."""
    count = draw.among((0, 1, 2, 3, 9, 17, 33)) if not draw.one_in(200) else 100_000
    if images == 0:
        count = 0
    corner = normal(count, 2).abs() * (max(size) / 2 / scale) - 2
    side = normal(count, 2) * (max(size) / 2 / scale)
    side = side if draw.one_in(8) else side.abs()
    image = torch.arange(count, dtype=normal.dtype)[:, None] * 7 % max(images, 1)
    return torch.cat([image, corner, corner + side], dim=1)


def draw_pool(draw, normal, operator: str) -> dict:
    images, size = draw.number(0, 3), draw_map(draw)
    scale = draw.among((1.0, 0.25, 1 / 16, 0.3, 2.0))
    rois = draw_rois(draw, normal, images, size, scale)
    many = len(rois) > 100 or max(size) > 100
    bins = [1, 1] if many else [draw.number(1, 4), draw.number(1, 4)]
    if draw.one_in(60) and not many:
        bins = draw.among(([1, 2000], [2000, 1]))
    channels = 1 if many or max(bins) > 100 else draw.among(CHANNELS)
    arguments = {"output_size": bins, "spatial_scale": scale}
    if operator == "ps_roi_pool":
        channels = channels * bins[0] * bins[1]
        arguments["round_rois"] = bool(draw.number(0, 1))
        offset = None
    elif operator == "deform_roi_align":
        arguments |= {"sampling_ratio": draw.number(-1, 4), "gamma": draw.among((0.1, 1.0, -3.0))}
        offset = [len(rois), 2, *bins]
    else:
        group, classes = draw.number(1, 3), draw.among((1, 1, 2, channels))
        classes = classes if channels % classes == 0 else 1
        arguments |= {"group_size": group, "samples_per_part": draw.number(1, 5)}
        arguments |= {"gamma": draw.among((0.1, 1.0, -3.0)), "round_rois": bool(draw.number(0, 1))}
        offset = [len(rois), 2 * classes, draw.number(1, 4), draw.number(1, 4)]
        channels *= group * group
    maps = {"input": normal(images, channels, *size), "rois": rois}
    if offset and draw.number(0, 3):
        maps["offset"] = normal(*offset)
    return {**maps, **arguments}


COORDINATES = ("offset", "rois", "mask")


def draw_case(draw: Draw) -> Case:
    operator = draw.among(("deform_conv2d", "deform_roi_pool", "deform_roi_align", "ps_roi_pool"))
    normal = tensors.Normal(draw.number(0, 2**32 - 1))
    conv = operator == "deform_conv2d"
    arguments = draw_conv(draw, normal) if conv else draw_pool(draw, normal, operator)
    case = Case(operator, arguments)
    if draw.one_in(3):
        make_wild(case, draw)
    dtype = draw.among((torch.float64, torch.float32, torch.float16, torch.bfloat16))
    half = dtype in (torch.float16, torch.bfloat16)
    coordinates = torch.float32 if half and draw.one_in(2) else dtype
    for name, tensor in case.tensors().items():
        tensor = tensor.to(coordinates if name in COORDINATES else dtype)
        layout = draw.among(tensors.LAYOUTS) if name != "rois" else draw.among(tensors.SAME_VALUES)
        arguments[name] = tensors.as_layout(tensor, layout)
        case.layouts.append(layout)
        if name in COORDINATES:
            case.tame &= bool((arguments[name].abs() < 1e6).all())
    case.size = expected_shape(case)
    if draw.one_in(2):
        damage_argument(case, draw)
    return case


def make_wild(case: Case, draw: Draw) -> None:
    """Put coordinates far outside the map, at whole pixels, or nowhere."""
    names = [name for name in case.tensors() if name in ("offset", "rois")]
    tensor = case.arguments[draw.among(names)]
    if tensor.numel() == 0:
        return
    for _ in range(draw.number(1, 4)):
        row = tensor.flatten(1)[draw.number(0, len(tensor) - 1)]
        first = 1 if tensor.shape[1:] == (5,) else 0  # the image index stays
        if first and draw.one_in(10):
            row[0] = draw.among((*WILD, -1.0, float(case.arguments["input"].shape[0])))
            case.damage = case.damage or "rois"
        else:
            row[draw.number(first, len(row) - 1)] = draw.among(WILD)


def damage_argument(case: Case, draw: Draw) -> None:
    name = draw.among(list(case.arguments))
    value = case.arguments[name]
    if isinstance(value, torch.Tensor) and not draw.one_in(8):
        kind = draw.among(tensors.DAMAGES)
        case.arguments[name] = tensors.damaged(value, kind, draw)
    else:
        kind, case.arguments[name] = "replaced", draw.among(HOSTILE)
    case.damage = f"{name} {kind}"


def is_bearable(case: Case, impossible: float = IMPOSSIBLE) -> bool:
    """Whether the call promises little work, or so much that it must fail."""
    sizes = [tensor.numel() for tensor in case.tensors().values()]
    bins, rois = case.arguments.get("output_size"), case.arguments.get("rois")
    bins = bins if isinstance(bins, list) else [bins, bins]
    if len(bins) == 2 and all(isinstance(n, int) and n > 0 for n in bins):
        count = len(rois) if isinstance(rois, torch.Tensor) and rois.dim() else 1
        sizes.append(max(count, 1) * bins[0] * bins[1])
    samples = case.arguments.get("samples_per_part", case.arguments.get("sampling_ratio", 0))
    many_samples = isinstance(samples, int) and 1000 < samples < 2**24
    return not many_samples and all(n <= 4 * MOST or n >= impossible for n in sizes)


def check_damaged(case: Case, draw: Draw) -> None:
    """Any result, or an error that users expect."""
    try:
        way = draw.among(("public", "public", "gradients", "tangents", "raw", "raw", "backward"))
        if way == "tangents" and not is_bearable(case, INF):
            return  # standard operations, which fail only after much work
        result = call(case, way, draw)
    except EXPECTED as error:
        assert str(error), f"an error without a message: {error!r}"
    except (LookupError, ArithmeticError, AttributeError, AssertionError) as error:
        # Fake kernels rely on the checks of public functions, standard operations on their own.
        on_meta = any(t.is_meta for t in case.tensors().values()) and way in ("raw", "backward")
        standard = way == "tangents" and isinstance(error, (IndexError, OverflowError))
        if not on_meta and not standard:
            raise AssertionError(f"{way}: {error!r} is no error that users expect") from error
    else:
        for tensor in result if isinstance(result, tuple) else (result,):
            assert isinstance(tensor, torch.Tensor)


def call(case: Case, way: str, draw: Draw):
    if way == "public":
        return case.function(**case.arguments)
    if way == "gradients":
        case.arguments = case.with_tensors(with_gradient)
        return gradients(case.function(**case.arguments), case.arguments)
    if way == "tangents":
        input = case.arguments["input"]
        others = {k: v for k, v in case.arguments.items() if k != "input"}
        return torch.func.jvp(partial(case.function, **others), (input,), (input,))
    every = every_argument(case.function, **case.arguments)
    if way == "backward":
        return backward(case, every, draw)
    return getattr(RAW, case.operator)(**every)


def backward(case: Case, every: dict, draw: Draw):
    function = getattr(RAW, f"{case.operator}_backward")
    input = case.arguments["input"]
    grad = torch.ones(case.size, dtype=getattr(input, "dtype", torch.float32))
    if draw.one_in(3):
        grad = tensors.damaged(grad, draw.among(tensors.DAMAGES), draw)
    every = {k: v for k, v in every.items() if k != "bias"}
    if case.operator == "ps_roi_pool" and isinstance(input, torch.Tensor):
        del every["input"]
        every |= {"input_size": list(input.shape), "channels_last": bool(draw.number(0, 1))}
        if draw.one_in(4) and input.dim() == 4:  # the size of the result
            sizes = (-1, 0, 1, 2, 3, 2**44, 2**62, 2**63 - 1, -(2**63), 2**64, None, "", [1])
            every["input_size"][draw.number(0, 3)] = draw.among(sizes)
    return function(grad, **every)


def with_gradient(tensor):
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def gradients(output, arguments: dict):
    """Gradients of the tensors, with the same gradient of the output for any layout."""
    leaves = [v for k, v in arguments.items() if isinstance(v, torch.Tensor) and k != "rois"]
    grad = (torch.arange(output.numel(), device=output.device) % 7 - 3.0).view(output.shape)
    return torch.autograd.grad(output, leaves, grad.to(output))


def results(case: Case, change, function=None) -> list:
    """Value and gradients for tensors changed by `change`."""
    arguments = case.with_tensors(lambda tensor: with_gradient(change(tensor)))
    output = (function or case.function)(**arguments)
    return [output.detach(), *gradients(output, arguments)]


def check_valid(case: Case, draw: Draw) -> None:
    given = results(case, lambda tensor: tensor)
    output, input = given[0], case.arguments["input"]
    assert list(output.shape) == case.size
    assert output.dtype == input.dtype
    assert output.is_contiguous() or is_channels_last(input)
    for (name, tensor), gradient in zip(
        [(k, v) for k, v in case.tensors().items() if k != "rois"], given[1:], strict=True
    ):
        assert gradient.shape == tensor.shape and gradient.dtype == tensor.dtype, name
    if case.tame:
        assert all(tensor.isfinite().all() for tensor in given)
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    if not is_channels_last(input):
        same = results(case, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
        torch.testing.assert_close(given, same, **exactly)
    if input.dtype in (torch.float16, torch.bfloat16):
        wide = results(case, torch.Tensor.float)
        bias = [k for k in case.tensors() if k != "rois"].index("bias") + 1 if has_bias(case) else 0
        for k, (narrow, expected) in enumerate(zip(given, wide, strict=True)):
            if k == 0 or k != bias:  # torch's own sum over positions has its own order
                torch.testing.assert_close(narrow, expected.to(narrow.dtype), **exactly)
    small = output.numel() < 2000 and input.numel() < 5000
    if input.dtype == torch.float64 and small and draw.one_in(2) and case.tame:
        check_composite(case, given, draw)


def has_bias(case: Case) -> bool:
    return case.arguments.get("bias") is not None


def expected_shape(case: Case) -> list[int]:
    a = case.arguments
    if case.operator != "deform_conv2d":
        channels = a["input"].shape[1] // a.get("group_size", 1) ** 2
        if case.operator == "ps_roi_pool":
            channels //= a["output_size"][0] * a["output_size"][1]
        return [len(a["rois"]), channels, *a["output_size"]]
    sizes = [
        (side + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for side, taps, pad, gap, step in zip(
            a["input"].shape[2:], a["weight"].shape[2:], a["padding"], a["dilation"], a["stride"]
        )
    ]
    return [a["input"].shape[0], a["weight"].shape[0], *sizes]


def check_composite(case: Case, given: list, draw: Draw) -> None:
    """Values, gradients and, in some cases, second derivatives."""
    if case.operator == "ps_roi_pool":
        return  # rounds as the kernels do in float32 alone

    def composite(**arguments):
        every = every_argument(case.function, **arguments)
        if "sampling_ratio" in every:
            every["sampling_ratio"] = max(every["sampling_ratio"], 0)
        return getattr(_composite, case.operator)(**every)

    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(results(case, lambda t: t, composite), given, **close)
    if not draw.one_in(4):
        return
    second = []
    for function in (case.function, composite):
        arguments = case.with_tensors(with_gradient)
        leaves = [v for k, v in arguments.items() if isinstance(v, torch.Tensor) and k != "rois"]
        output = function(**arguments)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        total = sum(gradient.square().sum() for gradient in first)
        if total.requires_grad:
            second.append(torch.autograd.grad(total, leaves, allow_unused=True))
    if second:
        torch.testing.assert_close(second[0], second[1], rtol=1e-6, atol=1e-6)


def one_input(data: bytes) -> None:
    draw = Draw(data)
    case = draw_case(draw)
    try:
        if not is_bearable(case):
            return
        if case.damage:
            check_damaged(case, draw)
        else:
            check_valid(case, draw)
    except Exception as error:
        error.add_note(str(case))
        raise


SEEDS = [random.Random(seed).randbytes(120) for seed in range(60)]
