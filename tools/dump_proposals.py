#!/usr/bin/env python
"""Write the proposals of an RPN as proposal files of Detectron2, DATASET_proposals.pkl.

python tools/dump_proposals.py --config-file configs/VOC-Detection/rpn_R_101.yaml \\
    --weights output/rpn/model_final.pth --output-dir proposals
python tools/dump_proposals.py --config-file YAML --weights CKPT --dataset NAME --dataset NAME

The config may also be that of a detector with an RPN. docs/proposals.md describes how to train a
detector from the files.
"""

import argparse
from pathlib import Path

from d2_deformable.checkpoint import load_model
from d2_deformable.cli import command
from d2_deformable.engine import dump_proposals


def parser():
    parser = argparse.ArgumentParser(prog="dump_proposals", description=__doc__.splitlines()[0])
    command.add_model_arguments(parser)
    parser.add_argument("--output-dir", default="proposals", metavar="FOLDER")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        help="repeatable (default: DATASETS.TRAIN and TEST)",
    )
    return parser


def main(args):
    cfg = command.config_of(args.config_file, args.opts)
    model = load_model(cfg, args.weights)
    for file in dump_proposals(cfg, model, args.dataset, Path(args.output_dir)):
        print(f"wrote {file}")


if __name__ == "__main__":
    command.run(main, parser())
