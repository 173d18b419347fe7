"""Effective dilation of a network's last convolutions by object size: table 2 of the paper."""

from dataclasses import asdict
from pathlib import Path

from ..analysis.draw_dilation import draw_bars
from ..analysis.draw_maps import draw_maps, short_name
from ..analysis.effective_dilation import (
    COLUMNS,
    EffectiveDilation,
    Rules,
    annotated_boxes,
)
from ..checkpoint import load_model
from ..data.records import dataset_records, read_inputs
from . import command

EXAMPLE = """
examples:
  d2-deformable analyze dilation --config-file YAML --weights CKPT --output output/dilation
  d2-deformable analyze dilation --config-file YAML --weights CKPT --dataset NAME --max-images 500
"""
# Help of the options that the paper leaves open, see Rules.
RULES = {
    "area": "measure objects in pixels of the original image, or of the network's input",
    "overlap": "the object that counts where several contain a filter's centre",
    "groups": "filters that count in a layer with several offset groups",
    "border": "keep or drop filters with sampling points beyond their feature map",
}


def parser():
    parser = command.parser("analyze dilation", __doc__, EXAMPLE)
    command.add_model_arguments(parser)
    parser.add_argument("--output", default="output/effective_dilation", metavar="FOLDER")
    parser.add_argument("--dataset", action="append", help="data set to run on (DATASETS.TEST)")
    parser.add_argument(
        "--max-images", type=int, default=0, help="use this many, evenly spaced (0: all)"
    )
    parser.add_argument("--pictures", type=int, default=3, help="images to draw maps over (3)")
    defaults = Rules()
    parser.add_argument("--limits", type=float, nargs=2, default=defaults.limits,
                        metavar=("SMALL", "LARGE"),
                        help="sides that divide object sizes, in pixels (96 224)")  # fmt: skip
    for rule, choices in Rules.CHOICES.items():
        default = getattr(defaults, rule)
        parser.add_argument(
            f"--{rule}", choices=choices, default=default, help=f"{RULES[rule]} ({default})"
        )
    return parser


def main(args):
    cfg = command.config_of(args.config_file, args.opts)
    names = args.dataset or cfg.DATASETS.TEST
    records = dataset_records(names, args.max_images)
    rules = Rules(tuple(args.limits), args.area, args.overlap, args.groups, args.border)
    table = EffectiveDilation(load_model(cfg, args.weights), rules)
    folder = Path(args.output)
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    for i, record in enumerate(records):
        image, inputs = read_inputs(cfg, record)
        boxes = annotated_boxes(record)
        maps = table.add(inputs, boxes)
        if i < args.pictures:
            stem = f"{i}_{Path(record['file_name']).stem}"
            figure = draw_maps(image, maps, "effective dilation in cells", boxes)
            figure.savefig(folder / "maps" / f"{stem}.png")
    layers = table.as_dict()
    draw_bars(layers).savefig(folder / "effective_dilation.png")
    print_table(layers)
    provenance = {
        "config_file": args.config_file,
        "weights": args.weights,
        "datasets": list(names),
        "images": len(records),
        "rules": asdict(rules),
        "unit": "cells of the layer's map",
    }
    command.write_json(folder / "effective_dilation.json", provenance | {"layers": layers})


def print_table(layers):
    width = max(28, *(len(short_name(name)) for name in layers))
    print(f"{'layer':{width}}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, row in layers.items():
        cells = (row[column] for column in COLUMNS)
        text = (f"{c['mean']:.2f} +- {c['std']:.2f}" if c["count"] else "-" for c in cells)
        print(f"{short_name(name):{width}}" + "".join(f"{cell:>16}" for cell in text))
