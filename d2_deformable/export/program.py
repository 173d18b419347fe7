"""Networks as programs of torch.export, .pt2 files."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..utils.files import replacing
from .network import checked_network


def export_program(model: nn.Module, image: Tensor, path) -> None:
    """Export the inference of a network, including NMS, and write it to `path`.

    Inputs and outputs are those of `InferenceNetwork.forward`. The sides of an image must be at
    least 4 pixels more than the largest stride of the backbone (68 x 68 with a pyramid up to stride
    64), because torch.export would need another program for maps of one row. The file runs on the
    device that the model is on now. To load it:

        torch.ops.load_library("d2_deformable/_C.so")  # or import d2_deformable
        import torchvision  # detectors: its nms, and for some RoIAlign
        network = torch.export.load(path).module()

    NMS moves the boxes of the classes apart in float64. torchvision does so in float32 for few
    boxes, and runs NMS class by class for many; an exported program cannot choose between the two.
    Results may differ for two boxes whose overlap equals the threshold up to rounding.

    Args:
        model: see `inference_network`; it is not changed.
        image: float32 (3, H, W) to trace the network with; any that is large enough will do.

    Raises:
        ValueError: a network or an image that cannot be exported, or a user's own part of the
            network that torch.export cannot trace.
        FileNotFoundError: the folder of `path` does not exist.
    """
    network = checked_network(model, image)
    backbone: Any = model.backbone
    least = max(shape.stride for shape in backbone.output_shape().values()) + 4
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
    except (RuntimeError, ValueError, TypeError) as error:  # which one depends on the reason
        raise ValueError(
            "torch.export cannot follow this network: "
            f"{str(error).strip().splitlines()[0]} (format torchscript traces it)"
        ) from error
