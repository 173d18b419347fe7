"""Show where a deformable network samples: figures 5 and 6 of the paper, on your own images."""

from pathlib import Path

from ..analysis.record import inspect_image
from ..analysis.visualize import FigureOptions, figures
from ..checkpoint import load_model
from ..data.records import class_names, dataset_records, read_inputs
from ..inference.sources import find_images
from . import command

EXAMPLE = """
examples:
  d2-deformable analyze sampling --config-file YAML --weights CKPT --images a.jpg photos/ 'b/*.png'
  d2-deformable analyze sampling --config-file YAML --weights CKPT --images a.jpg --point 120 80
  d2-deformable analyze sampling --config-file YAML --weights CKPT --images a.jpg \\
      --box 10 20 200 180 dog
"""

UNIT = "pixels of the original image; points and cells [x, y], boxes [x0, y0, x1, y1]"


def parser():
    parser = command.parser("analyze sampling", __doc__, EXAMPLE)
    command.add_model_arguments(parser)
    parser.add_argument("--output", default="output/visualize_sampling", metavar="FOLDER")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="INPUT",
        help="images, folders and globs, after any KEY VALUE pairs; default: some of DATASETS.TEST",
    )
    parser.add_argument("--num-images", type=int, default=4, help="number from DATASETS.TEST (4)")
    parser.add_argument(
        "--point",
        type=float,
        nargs=2,
        action="append",
        metavar=("X", "Y"),
        help="position of a unit (figure 5) in image pixels, repeatable; default: on objects and "
        "background",
    )
    parser.add_argument(
        "--layers", type=int, default=3, help="number of last deformable layers (3)"
    )
    parser.add_argument(
        "--box",
        nargs=5,
        action="append",
        metavar=("X0", "Y0", "X1", "Y1", "CLASS"),
        help="RoI of figure 6 in image pixels, repeatable; default: detections",
    )
    parser.add_argument(
        "--num-boxes", type=int, default=3, help="number of best detections to use as RoIs (3)"
    )
    parser.add_argument(
        "--score-thresh", type=float, default=0.5, help="lowest detection score (0.5)"
    )
    return parser


def main(args):
    options = FigureOptions(args.point, args.layers, args.box, args.num_boxes, args.score_thresh)
    if args.num_images < 1:
        raise ValueError(f"--num-images is {args.num_images}; expected 1 or more")
    cfg = command.config_of(args.config_file, args.opts, needs_data=args.images is None)
    if args.images is None:
        records = dataset_records(cfg.DATASETS.TEST[:1], args.num_images)
    else:
        records = image_records(args.images)
    names = class_names(cfg, next(iter(cfg.DATASETS.TEST), None))
    model = load_model(cfg, args.weights)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for i, record in enumerate(records):
        image, inputs = read_inputs(cfg, record)
        height, width = image.shape[:2]
        result = {"file": record["file_name"], "width": width, "height": height}
        for kind, figure, numbers in figures(image, inspect_image(model, inputs), names, options):
            picture = folder / f"{i}_{Path(record['file_name']).stem}_{kind}.png"
            figure.savefig(picture)
            print(f"wrote {picture}")
            result[kind] = numbers
        results.append(result)
    provenance = {"config_file": args.config_file, "weights": args.weights, "unit": UNIT}
    command.write_json(folder / "sampling.json", provenance | {"images": results})


def image_records(inputs) -> list[dict]:
    """Make records of Detectron2's format from images, folders and globs."""
    try:
        return [{"file_name": str(file)} for file in find_images(inputs)]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (give KEY VALUE pairs before --images)") from error
