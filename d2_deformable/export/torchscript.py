"""Networks as TorchScript files, for Python and C++."""

import warnings

import torch
from torch import Tensor, nn

from ..utils.files import replacing
from .network import checked_network


def export_torchscript(model: nn.Module, image: Tensor, path) -> None:
    """Trace the inference of a network and write it to `path`.

    Inputs and outputs are those of `InferenceNetwork.forward`, for images of every size, also where
    nothing is found. The file runs on the device that the model is on now.

    Loading it needs no Python code of this package or of Detectron2, only the operators:

        torch.ops.load_library("d2_deformable/_C.so")  # or import d2_deformable
        import torchvision  # detectors: its nms, and for some RoIAlign
        network = torch.jit.load(path)

    For C++, see docs/cpp/detect.cpp.

    Args:
        model: see `inference_network`; it is not changed.
        image: float32 (3, H, W) to trace the network with; any will do.

    Raises:
        ValueError: a network or an image that cannot be exported, or a user's own part of the
            network that TorchScript cannot save.
        FileNotFoundError: the folder of `path` does not exist.
    """
    network = checked_network(model, image)
    with replacing(path) as part, warnings.catch_warnings():
        # Branches that depend on values are replaced in traceable.py; weight shapes are constant.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # TorchScript itself is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 and newer
        traced = torch.jit.trace(network, (image,), check_trace=False)
        try:
            saved = traced.save_to_buffer()  # given a path, torch writes the name into the file
        except RuntimeError as error:
            raise ValueError(
                "this network calls a Python function of its own, e.g. a torch.autograd.Function, "
                f"which no file can hold: {str(error).strip().splitlines()[0]}"
            ) from error
        part.write_bytes(saved)
