"""Parameters, FLOPs and time of networks, side by side: table 4 of the paper."""

from pathlib import Path

import torch

from ..analysis import complexity
from ..analysis.draw_complexity import draw_complexity
from ..checkpoint import load_model
from ..utils.pixels import read_image
from . import command

EXAMPLE = """
examples:
  d2-deformable analyze complexity --config-file PLAIN.yaml DEFORMABLE.yaml
  d2-deformable analyze complexity --config-file PLAIN.yaml DEFORMABLE.yaml --weights A.pth B.pth
  d2-deformable analyze complexity --config-file YAML --no-time MODEL.ROI_HEADS.NUM_CLASSES 3
"""


def parser():
    parser = command.parser("analyze complexity", __doc__, EXAMPLE)
    parser.add_argument("--config-file", required=True, nargs="+", metavar="YAML")
    parser.add_argument("--weights", nargs="+", help="one checkpoint per config (default: random)")
    parser.add_argument("--output", default="output/complexity", metavar="FOLDER")
    parser.add_argument("--image", help="image to run on (default: noise)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(375, 500),
        metavar=("H", "W"),
        help="size of the noise before resizing (375 500)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each (10)")
    parser.add_argument("--no-time", action="store_true", help="count only")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser


def main(args):
    files = args.config_file
    weights = args.weights or [None] * len(files)
    if len(weights) != len(files):
        raise ValueError(f"{len(weights)} weights for {len(files)} configs: give one for each")
    if args.repeats < 1 or min(args.image_size) < 1:
        raise ValueError("--repeats and --image-size are at least 1")
    networks, models, inputs = [], [], []
    for file, checkpoint in zip(files, weights):
        cfg = command.config_of(file, args.opts, needs_data=False)
        image = complexity.random_image(args.image_size)
        if args.image:
            image = read_image(args.image, cfg.INPUT.FORMAT)
        inputs.append([complexity.image_as_tested(cfg, image)])
        models.append(load_model(cfg, checkpoint) if checkpoint else complexity.random_model(cfg))
        networks.append(
            {"config_file": file, "weights": checkpoint or "random"}
            | complexity.count(models[-1], inputs[-1])
        )
    if not args.no_time:
        times = complexity.time_interleaved(models, inputs, args.repeats)
        for network, seconds in zip(networks, times):
            network["seconds"] = seconds
    print_table(networks)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    draw_complexity(networks).savefig(folder / "complexity.png")
    settings = {
        "image": args.image or "noise",
        "threads": torch.get_num_threads(),
        "overrides": args.opts,
        "unit": "flops are multiply-adds, as fvcore counts them",
    }
    command.write_json(folder / "complexity.json", settings | {"networks": networks})


def print_table(networks):
    """Print every network, with its difference from the first one in brackets."""
    rows = [["network", "M parameters", "GFLOPs", "s forward", "s whole run", "quartiles"]]
    for network in networks:
        cells = [
            f"{value:.3f}" + (f" ({value - first:+.3f})" if value != first else "")
            for value, first in zip(_numbers(network), _numbers(networks[0]))
        ]
        if "seconds" in network:
            low, high = network["seconds"]["whole"]["quartiles"]
            cells.append(f"{low:.3f} to {high:.3f}")
        rows.append([Path(network["config_file"]).stem, *cells])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _numbers(network):
    yield network["parameters"]["total"] / 1e6
    yield network["flops"]["total"] / 1e9
    yield from (run["median"] for run in network.get("seconds", {}).values())
