"""Networks as programs of torch.export, .pt2 files."""

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..utils.files import replacing
from .network import checked_network


def export_program(model: nn.Module, image: Tensor, path) -> None:
    """Export the whole inference of a network, NMS and all, and write it to `path`.

    The file takes and gives what `InferenceNetwork.forward` does, for images of every size from
    4 pixels above the largest stride of the backbone (68 x 68 with a pyramid up to stride 64), as
    torch.export treats maps of one row as another program. It runs on the device that the model
    is on now. To load it:

        torch.ops.load_library("d2_deformable/_C.so")  # or import d2_deformable
        import torchvision  # detectors: its nms, and for some RoIAlign
        network = torch.export.load(path).module()

    In NMS the boxes of the classes are moved apart in float64; torchvision does so in float32 where
    boxes are few, and calls NMS class by class where they are many, which no exported program can
    choose between. Two boxes whose overlap is the threshold up to rounding may differ.

    Args:
        model: as `inference_network` takes; it is left as it is.
        image: float32 (3, H, W) to trace it with; any that is large enough will do.

    Raises:
        ValueError: a network or an image that does not fit, or a part of a user's own in the
            network that torch.export cannot follow.
        FileNotFoundError: there is no folder for `path`.
    """
    network = checked_network(model, image)
    least = max(shape.stride for shape in model.backbone.output_shape().values()) + 4
    if min(image.shape[1:]) < least:
        raise ValueError(
            f"image is {tuple(image.shape)}, but torch.export needs an example of at least "
            f"{least} x {least} pixels for this network"
        )
    sizes = {1: Dim("height", min=least), 2: Dim("width", min=least)}
    with replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*create_unbacked_symint", category=FutureWarning
        )
        program = _exported(network, image.contiguous(), sizes)  # a view's strides are constants
        with open(part, "wb") as file:
            torch.export.save(program, file)


def _exported(network, image, sizes):
    try:
        return torch.export.export(network, (image,), dynamic_shapes=(sizes,))
    except (RuntimeError, ValueError, TypeError) as error:  # what torch raises, by the reason
        raise ValueError(
            "torch.export cannot follow this network: "
            f"{str(error).strip().splitlines()[0]} (format torchscript traces it)"
        ) from error
