"""Turns a plain network into a dilated and deformable one.

The plain network is built by its own code. These functions then walk its convolutions larger than
1x1, in network order, and change them in place (paper sec. 2.3). They are not specific to ResNet:
any module tree whose registration order is its network order will do.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial

from detectron2.layers import CNNBlockBase
from torch import nn

from ...layers import DeformConv2d


def kernel_convs(root: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions below `root` larger than 1x1, by name, in network order."""
    return {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, nn.Conv2d)
        and max(module.kernel_size) > 1
        and not name.endswith("conv_offset")
    }


def dilate_stage(stage: nn.Module, dilation: int) -> None:
    """Give `stage` stride 1 and its convolutions larger than 1x1 the given dilation.

    Every position that the strided stage computes stays where it was, and the padding grows so that
    maps keep their size. The paper does this to conv5 of every network, with dilation 2 (sec. 2.3)
    or 4, 6, 8 (table 3).
    """
    for module in stage.modules():
        if isinstance(module, CNNBlockBase):
            module.stride = 1
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    for conv in kernel_convs(stage).values():
        conv.dilation = (dilation, dilation)
        conv.padding = tuple(dilation * (k - 1) // 2 for k in conv.kernel_size)


def deform_convs(root: nn.Module, names: Iterable[str], **kwargs) -> None:
    """Replace the named convolutions below `root` by `DeformConv2d` twins.

    Args:
        names: names from `kernel_convs(root)`.
        kwargs: offset_groups, offset_dilation, modulated, max_offset, border of `DeformConv2d`.

    Weights, norms, activations and parameter names stay; `<name>.conv_offset.*` is new. Weights of
    Detectron2's own deformable blocks can also be loaded: their sibling `<name>_offset.*` is
    renamed. Since their mask is a plain sigmoid, `<name>.weight` of a modulated layer is halved,
    which gives exactly the same function.

    Raises:
        ValueError: a name that is not one of a convolution larger than 1x1.
    """
    convs = kernel_convs(root)
    for name in names:
        if name not in convs:
            nearest = get_close_matches(name, convs, n=5, cutoff=0.0)
            raise ValueError(
                f"no convolution larger than 1x1 is called {name!r}; the nearest names are "
                f"{', '.join(nearest)} (a YAML gives them in MODEL.RESNETS.DEFORM_LAYERS)"
            )
        parent_name, _, attribute = name.rpartition(".")
        parent = root.get_submodule(parent_name)
        setattr(parent, attribute, DeformConv2d.from_conv(convs[name], **kwargs))
        # On the parent, because it would report the sibling's keys as unexpected.
        parent.register_load_state_dict_pre_hook(partial(_rename_sibling_offsets, attribute))


def _rename_sibling_offsets(attribute, parent, state_dict, prefix, *_):
    """Rename `conv2_offset.*` of Detectron2 to `conv2.conv_offset.*`."""
    for name in ("weight", "bias"):
        key = f"{prefix}{attribute}_offset.{name}"
        if key in state_dict:
            state_dict[f"{prefix}{attribute}.conv_offset.{name}"] = state_dict.pop(key)
            if name == "weight" and getattr(parent, attribute).modulated:
                # sigmoid * weight == 2 * sigmoid * (weight / 2), without rounding.
                weight = f"{prefix}{attribute}.weight"
                state_dict[weight] = state_dict[weight] / 2
