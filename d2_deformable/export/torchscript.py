"""Networks as TorchScript files, for Python and C++."""

import warnings

import torch
from torch import Tensor, nn

from ..utils.files import replacing
from .network import checked_network


def export_torchscript(model: nn.Module, image: Tensor, path) -> None:
    """Trace the inference of a network and write it to `path`.

    The file takes and gives what `InferenceNetwork.forward` does, for images of every size, also
    where nothing is found. It runs on the device that the model is on now.

    What loads it needs no Python code of this package or of Detectron2, only the operators:

        torch.ops.load_library("d2_deformable/_C.so")  # or import d2_deformable
        import torchvision  # detectors: its nms, and for some RoIAlign
        network = torch.jit.load(path)

    and in C++ as docs/cpp/detect.cpp does.

    Args:
        model: as `inference_network` takes; it is left as it is.
        image: float32 (3, H, W) to trace it with; any will do.

    Raises:
        ValueError: a network or an image that does not fit, or a part of a user's own in the
            network that TorchScript cannot save.
        FileNotFoundError: there is no folder for `path`.
    """
    network = checked_network(model, image)
    with replacing(path) as part, warnings.catch_warnings():
        # What does depend on values stands in traceable.py; shapes of weights are constant.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        traced = torch.jit.trace(network, (image,), check_trace=False)
        try:
            saved = traced.save_to_buffer()  # given a path, torch writes the name into the file
        except RuntimeError as error:
            raise ValueError(
                "this network calls a Python function of its own, e.g. a torch.autograd.Function, "
                f"which no file can hold: {str(error).strip().splitlines()[0]}"
            ) from error
        part.write_bytes(saved)
