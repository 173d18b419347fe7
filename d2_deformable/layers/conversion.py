"""Turns convolutions of a network that is already built into deformable ones.

The functions walk the convolutions larger than 1x1 of any module tree and change them in place,
before weights are loaded. They need torch only.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

from torch import nn

from .deform_conv2d import DeformConv2d

# Options of MODEL.DEFORM_MODULES, named as in MODEL.RESNETS.DEFORM_*: argument of DeformConv2d,
# type of the value and, of a number, the lowest.
OPTIONS: dict[str, tuple[str, type, float]] = {
    "groups": ("offset_groups", int, 1),
    "modulated": ("modulated", bool, 0),
    "border": ("border", str, 0),
    "clamp": ("max_offset", float, 0),
    "offset_dilation": ("offset_dilation", int, 0),
}


def kernel_convs(root: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions below `root` larger than 1x1, by name, in network order.

    Network order is the order of registration. Convolutions that predict offsets are left out.
    """
    return _kernel_convs(dict(root.named_modules()))


def _kernel_convs(modules: dict[str, nn.Module]) -> dict[str, nn.Conv2d]:
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
        and max(module.kernel_size) > 1
        and not name.endswith("conv_offset")
        # Detectron2 and mmdetection predict the offsets of `conv2` by its sibling `conv2_offset`.
        and not (name.endswith("_offset") and name.removesuffix("_offset") in modules)
    }


def deform_convs(root: nn.Module, names: Iterable[str], **kwargs) -> None:
    """Turn the named convolutions below `root` into `DeformConv2d`, in place.

    Args:
        names: names from `kernel_convs(root)`.
        kwargs: offset_groups, offset_dilation, modulated, max_offset, border of `DeformConv2d`.

    The modules stay the same objects, so that lists and other modules which hold them see the
    change, and hooks remain. Weights, norms, activations and parameter names stay;
    `<name>.conv_offset.*` is new. Weights of Detectron2's own deformable blocks can also be loaded:
    their sibling `<name>_offset.*` is renamed. Since their mask is a plain sigmoid, `<name>.weight`
    of a modulated layer is halved, which gives exactly the same function.

    Raises:
        ValueError: a name that is not one of a convolution larger than 1x1, or a convolution that
            has no deformable twin, see `DeformConv2d.from_conv`.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    convs = _kernel_convs(modules)
    for name in names:
        if name not in convs:
            raise ValueError(
                f"no convolution larger than 1x1 is called {name!r}; the nearest names are "
                f"{_nearest(name, convs)} (a YAML gives them in MODEL.RESNETS.DEFORM_LAYERS)"
            )
        try:
            twin = DeformConv2d.from_conv(convs[name], **kwargs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        _become(convs[name], twin)
        parent, _, attribute = name.rpartition(".")
        # On the parent, because it would report the sibling's keys as unexpected.
        modules[parent].register_load_state_dict_pre_hook(partial(_rename_siblings, attribute))


def deform_modules(model: nn.Module, modules) -> nn.Module:
    """Turn convolutions anywhere in a network into `DeformConv2d`: MODEL.DEFORM_MODULES.

    Call it before weights are loaded and before the optimizer is built. With the plain network's
    weights the output is the plain network's, up to rounding.

    Args:
        model: changed in place, see `deform_convs`. A convolution that is called on several maps,
            as in the head of an RPN, predicts offsets for each of them.
        modules: [[regex, {option: value}], ...]. All convolutions larger than 1x1 whose full name
            matches (re.search) become deformable; the first regex that matches one decides, and
            those that are deformable already stay as they are. Options are groups, modulated,
            border, clamp and offset_dilation, with the meaning of MODEL.RESNETS.DEFORM_NUM_GROUPS,
            DEFORM_MODULATED, DEFORM_BORDER, DEFORM_OFFSET_CLAMP and DEFORM_OFFSET_DILATION. The
            defaults are those of `DeformConv2d`.

    Returns:
        `model`.

    Raises:
        ValueError: see `parse_modules`; a regex turns no convolution into a deformable one; or one
            that it matches has no deformable twin, see `DeformConv2d.from_conv`.

    Example:
        >>> head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        >>> net = deform_modules(nn.ModuleDict({"head": head}), [["^head", {"groups": 4}]])
        >>> [type(layer).__name__ for layer in net.head]
        ['DeformConv2d', 'ReLU', 'Conv2d']
    """
    for regex, kwargs in parse_modules(modules):
        found = dict(model.named_modules(remove_duplicate=False))
        convs = _kernel_convs(found)
        plain = {
            id(conv): name
            for name, conv in convs.items()
            if regex.search(name) and not isinstance(conv, DeformConv2d)
        }
        where = f"MODEL.DEFORM_MODULES: {regex.pattern!r}"
        if not plain:
            raise ValueError(f"{where} {_why_nothing_matches(regex, found, convs)}")
        try:
            deform_convs(model, plain.values(), **kwargs)
        except ValueError as error:
            raise ValueError(f"{where} matches {error}") from error
    return model


def parse_modules(modules) -> list[tuple[re.Pattern, dict]]:
    """Check the entries of MODEL.DEFORM_MODULES, [[regex, {option: value}], ...].

    Returns:
        the regex and the keyword arguments of `DeformConv2d` of each entry.

    Raises:
        ValueError: an entry is not [regex, {option: value}], or an option or the type of its value
            is unknown.
    """
    parsed = []
    for entry in modules:
        try:
            # [regex] alone needs no options.
            if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) > 2:
                raise ValueError("not a list of one or two")
            pattern, options = (*entry, {})[:2]
            if not isinstance(options, Mapping):
                raise ValueError("the options are no mapping")
            kwargs = dict(_argument(*item) for item in options.items())
            parsed.append((re.compile(pattern), kwargs))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"MODEL.DEFORM_MODULES holds {entry!r} ({error}); expected [regex] or [regex, "
                "options], e.g. ['roi_heads.mask_head', {'groups': 4}]"
            ) from error
    return parsed


def _argument(option: str, value) -> tuple:
    if option not in OPTIONS:
        raise ValueError(f"{option!r} is no option; choose from {', '.join(OPTIONS)}")
    argument, kind, lowest = OPTIONS[option]
    kinds = (float, int) if kind is float else kind
    if not isinstance(value, kinds) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{option} is {value!r}, a {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, int | float) and not lowest <= value < math.inf:
        raise ValueError(f"{option} is {value}; expected a finite number, {lowest} or more")
    return argument, value


def _why_nothing_matches(regex: re.Pattern, modules: dict, convs: dict) -> str:
    matched = [name for name in modules if regex.search(name)]
    if deformable := [name for name in matched if name in convs]:
        return f"matches only convolutions that are deformable already, e.g. {deformable[0]}"
    # Not deformable in any library: 1x1 and transposed convolutions, and those over one or three
    # dimensions.
    others = {n: m for n in matched if hasattr(m := modules[n], "kernel_size")}
    if others:
        name, other = next(iter(others.items()))
        kind = f"{type(other).__name__} with kernel {other.kernel_size}"
        return f"matches no convolution larger than 1x1, only others such as {name} ({kind})"
    return (
        "matches no convolution larger than 1x1; the nearest names are "
        f"{_nearest(regex.pattern, convs)}"
    )


def _nearest(name: str, convs: dict) -> str:
    return ", ".join(get_close_matches(name, convs, n=5, cutoff=0.0)) or "none"


def _become(conv: nn.Conv2d, twin: DeformConv2d) -> None:
    """Make `conv` what `twin` is, and keep its own parameters, submodules and hooks."""
    conv.__class__ = type(twin)
    for name, value in vars(twin).items():
        vars(conv).setdefault(name, value)
    own = dict(conv.named_children())
    for name, child in twin.named_children():
        if name not in own:
            conv.add_module(name, child)


def _rename_siblings(attribute, parent, state_dict, prefix, *_):
    """Rename `conv2_offset.*` of Detectron2 to `conv2.conv_offset.*`."""
    for name in ("weight", "bias"):
        key = f"{prefix}{attribute}_offset.{name}"
        if key in state_dict:
            state_dict[f"{prefix}{attribute}.conv_offset.{name}"] = state_dict.pop(key)
            if name == "weight" and getattr(parent, attribute).modulated:
                # sigmoid * weight == 2 * sigmoid * (weight / 2), without rounding.
                weight = f"{prefix}{attribute}.weight"
                state_dict[weight] = state_dict[weight] / 2
