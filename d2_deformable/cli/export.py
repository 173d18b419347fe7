"""Export a trained network to a file that runs without Detectron2's Python code."""

import math

import numpy as np

from ..analysis.complexity import image_as_tested
from ..checkpoint import load_model
from ..data.records import class_names
from ..data.warped_shapes import WarpedShapesFormat
from ..export import export_onnx, export_program, export_torchscript
from ..export.verify import are_rounding, differences, load_exported
from ..utils.files import replacing
from ..utils.pixels import read_image
from ..utils.text import count
from . import command

EXAMPLE = """
examples:
  d2-deformable export --config-file YAML --weights W --format torchscript --output detector.pt
  d2-deformable export --config-file YAML --weights W --format torch_export --output detector.pt2
  d2-deformable export --config-file YAML --weights W --format onnx --output detector.onnx \\
      --image photo.jpg MODEL.DEVICE cpu

The file is compared with the network on the photograph, or on drawn shapes if none is given. It is
removed if its output differs. `d2-deformable export weights` writes the weights alone.
"""

FORMATS = {"torchscript": export_torchscript, "torch_export": export_program, "onnx": export_onnx}


def parser():
    parser = command.parser("export", __doc__, EXAMPLE)
    command.add_model_arguments(parser)
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument(
        "--image", metavar="PHOTO", help="image to compare on (default: drawn shapes)"
    )
    return parser


def main(args):
    cfg = command.config_of(args.config_file, args.opts, needs_data=False)
    photo = (
        read_image(args.image, cfg.INPUT.FORMAT) if args.image else drawn_shapes(cfg.INPUT.FORMAT)
    )
    image = image_as_tested(cfg, photo)["image"].float()
    model = load_model(cfg, args.weights)
    with replacing(args.output) as part:
        extra = metadata(cfg) if args.format == "onnx" else {}
        # Traced on another size and content than it is compared on, so that a constant taken from
        # the traced image shows as a difference.
        FORMATS[args.format](model, image[:, 1:].transpose(1, 2), part, **extra)
        exported = load_exported(part, args.format)
        found = differences(model, exported(image), image)
        line = compared(found, tuple(image.shape[1:]))
        if not are_rounding(found):
            raise ValueError(
                f"the {args.format} file differs too much from the network: {line}; no file is left"
            )
    print(f"wrote {args.output}\n{line}")
    if found.get("detections") == 0:
        print("no detections on this image: compare on a photograph with objects, --image PHOTO")


def drawn_shapes(channels) -> np.ndarray:
    """Draw a fixed picture of shapes, with channels in the order `channels`."""
    pixels, _ = WarpedShapesFormat(image_size=400).draw(0)
    return pixels[..., ::-1] if channels == "BGR" else pixels


def metadata(cfg) -> dict:
    """Metadata of an ONNX file that the config knows and the network does not."""
    names = class_names(cfg, next(iter(cfg.DATASETS.TEST), None))
    known = names[0] != "class 0"  # otherwise the names are placeholders
    return {"input_format": cfg.INPUT.FORMAT, "class_names": names if known else ()}


def compared(found, size) -> str:
    """Describe the differences on an image of `size`, in one line."""
    units = {
        "boxes": "boxes by {:.2g} px",
        "scores": "scores by {:.2g}",
        "masks": "masks by {:.2g} of the image",
        "class_scores": "class scores by {:.2g} of the highest",
    }
    if math.isinf(found.get("boxes", 0.0)):
        return (
            f"on {size[0]} x {size[1]} pixels it gives other detections than the network; if many "
            "scores are equal, as in an untrained network, each runtime may keep different ones"
        )
    parts = [unit.format(found[name]) for name, unit in units.items() if name in found]
    detections = f", {count(found['detections'], 'detection')}" if "detections" in found else ""
    pixels = f"{size[0]} x {size[1]} pixels"
    return f"compared with the network, on {pixels}{detections}: {', '.join(parts)} at most"
