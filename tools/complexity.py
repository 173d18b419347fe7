#!/usr/bin/env python
"""Parameters, multiply-adds and time of networks, side by side: table 4 of the paper.

python tools/complexity.py --config-file PLAIN.yaml DEFORMABLE.yaml
python tools/complexity.py --config-file PLAIN.yaml DEFORMABLE.yaml --weights A.pth B.pth
python tools/complexity.py --config-file YAML --no-time MODEL.ROI_HEADS.NUM_CLASSES 3
"""

import argparse
from pathlib import Path

import torch
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model

from d2_deformable.analysis import command, complexity
from d2_deformable.analysis.draw_complexity import draw_complexity
from d2_deformable.analysis.flops import count_macs, count_macs_by_torch


def parser():
    parser = argparse.ArgumentParser(prog="complexity", description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, nargs="+", metavar="YAML")
    parser.add_argument("--weights", nargs="+", help="a checkpoint each (random weights)")
    parser.add_argument("--output", default="output/complexity", metavar="FOLDER")
    parser.add_argument("--image", help="image to run on (noise)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(375, 500),
        metavar=("H", "W"),
        help="of the noise before resizing (375 500)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each (10)")
    parser.add_argument("--no-time", action="store_true", help="count only")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser


def main(args):
    weights = args.weights or [None] * len(args.config_file)
    if len(weights) != len(args.config_file):
        raise ValueError(
            f"{len(weights)} weights for {len(args.config_file)} configs; give each one"
        )
    if args.repeats < 1 or min(args.image_size) < 1:
        raise ValueError("--repeats and --image-size are at least 1")
    networks, models, inputs = {}, [], []
    for file, checkpoint in zip(args.config_file, weights):
        cfg = command.read_config(file, args.opts)
        if checkpoint:
            model = command.load_model(cfg, checkpoint)
        else:
            torch.manual_seed(0)
            model = build_model(cfg).eval()
            complexity.tame_random_weights(model)
        if args.image:
            image = read_image(args.image, cfg.INPUT.FORMAT)
        else:
            image = complexity.random_image(args.image_size)
        models.append(model)
        inputs.append([complexity.test_input(cfg, image)])
        networks[file] = {
            "weights": checkpoint or "random",
            "input_size": list(inputs[-1][0]["image"].shape[1:]),
            "parameters": complexity.parameters_by_part(model),
            "macs": count_macs(model, inputs[-1]),
            "macs_by_torch": count_macs_by_torch(model, inputs[-1]),
        }
    if not args.no_time:
        times = complexity.time_interleaved(models, inputs, args.repeats)
        for network, seconds in zip(networks.values(), times):
            network["seconds"] = seconds
    print_table(networks)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    draw_complexity({Path(file).stem: n for file, n in networks.items()}).savefig(
        folder / "complexity.png"
    )
    settings = {"image": args.image or f"noise of {args.image_size[0]} x {args.image_size[1]}",
                "threads": torch.get_num_threads(), "overrides": args.opts}  # fmt: skip
    command.write_json(folder / "complexity.json", settings | {"networks": networks})


def print_table(networks):
    """Every network, and how much more than the first it takes."""
    rows = [["network", "M parameters", "G multiply-adds", "s forward", "s whole run"]]
    first = next(iter(networks.values()))
    for file, network in networks.items():
        values = list(zip(_numbers(network), _numbers(first)))
        cells = [f"{v:.3f}" + (f" ({v - v0:+.3f})" if v != v0 else "") for v, v0 in values]
        rows.append([Path(file).stem, *cells])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _numbers(network):
    seconds = network.get("seconds", {})
    yield network["parameters"]["total"] / 1e6
    yield network["macs"]["total"] / 1e9
    yield from (of_run["median"] for of_run in seconds.values())


if __name__ == "__main__":
    command.run(main, parser())
