"""Networks as ONNX files, which ONNX Runtime runs without a plug-in."""

import io
import json
import warnings

import torch
from torch import Tensor, nn

from .. import __version__
from ..utils.files import replacing
from .network import checked_network, output_names
from .onnx_operators import standard_operators

OPSET = 19  # the first with DeformConv
STANDARD_DOMAINS = {"", "ai.onnx"}
MAX_BYTES = 2**31 - 1  # of one protobuf message


def export_onnx(
    model: nn.Module, image: Tensor, path, *, input_format=None, class_names=()
) -> None:
    """Write the inference of a network, including NMS, as one ONNX file of standard operators.

    Inputs and outputs are those of `InferenceNetwork.forward`. Height and width of the image and
    the number of detections, which may be 0, are dynamic. The single image and its float32 type are
    fixed. ONNX's DeformConv needs an ONNX Runtime that implements it. Version 1.32 does; one that
    does not says "Could not find an implementation for DeformConv(19)" when it loads the file. To
    run the file:

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        boxes, scores, classes = session.run(None, {"image": image})

    The file's metadata_props describe the image: "input_format" ("BGR" or "RGB"), "input_layout"
    and "pixel_range". They also hold "class_names", a JSON list, where these are known; the version
    of this package, "d2_deformable"; and the class of the network, "meta_architecture".

    The exporter is the one that traces TorchScript. The one based on torch.export cannot translate
    torchvision's RoIPool. With it, images would have a minimum size, and NMS would not round as
    eager code does (see `export_program`).

    Args:
        model: see `inference_network`; it is not changed.
        image: float32 (3, H, W) to trace the network with; any will do.
        input_format: cfg.INPUT.FORMAT; None uses the model's own `input_format`.
        class_names: names of class 0, 1, ...; may be empty.

    Raises:
        ValueError: a network or an image that cannot be exported, or a network whose file would
            exceed ONNX's 2 GiB or contain operators that are not ONNX's own. The message names the
            operators.
        FileNotFoundError: the folder of `path` does not exist.
        ImportError: onnx is not installed.
    """
    onnx = _import_onnx()
    network = checked_network(model, image).cpu()
    with replacing(path) as part:
        file = onnx.load_from_string(_traced(network, image.cpu(), output_names(model)))
        _check(onnx, file, type(model).__name__)
        metadata = {
            "input_format": input_format or getattr(model, "input_format", None),
            "input_layout": "image: float32 (3, height, width), resized as for the network",
            "pixel_range": "0 to 255",
            "class_names": json.dumps(list(class_names)) if class_names else None,
            "d2_deformable": __version__,
            "meta_architecture": type(model).__name__,
        }
        onnx.helper.set_model_props(file, {k: v for k, v in metadata.items() if v})
        part.write_bytes(file.SerializeToString())


def _import_onnx():
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files are written by the package onnx: pip install onnx") from error
    return onnx


def _traced(network, image, names) -> bytes:
    size = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    if size > MAX_BYTES:
        raise ValueError(
            f"an ONNX file holds up to {MAX_BYTES} bytes, but this network has {size} of weights"
        )
    sizes = {1: "height", 2: "width"}
    outputs = {n: sizes if n == "class_scores" else {0: "detections"} for n in names}
    traced = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), standard_operators():
        # Branches that depend on values are replaced in traceable.py; weight shapes are constant.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (image,),
                traced,  # type: ignore[arg-type]  # the exporter that traces takes it
                input_names=["image"],
                output_names=list(names),
                dynamic_axes={"image": sizes} | outputs,
                opset_version=OPSET,
                dynamo=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                "this network contains what ONNX's own operators cannot express: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    return traced.getvalue()


def _check(onnx, file, name) -> None:
    """Check that the file is valid, and that no plug-in is needed to run it."""
    used = {(node.domain, node.op_type) for node in _nodes(file.graph)}
    foreign = sorted(f"{d}::{op}" for d, op in used if d not in STANDARD_DOMAINS)
    if foreign:
        raise ValueError(
            f"{name} holds operators that no ONNX Runtime has without a plug-in: "
            f"{', '.join(foreign)}"
        )
    onnx.checker.check_model(file, full_check=True)


def _nodes(graph):
    """Yield all nodes of a graph, including those inside branches and loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
