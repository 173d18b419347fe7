"""Write the proposals of an RPN as proposal files of Detectron2, DATASET_proposals.pkl."""

from pathlib import Path

from ..checkpoint import load_model
from ..engine import dump_proposals
from . import command

EXAMPLE = """
examples:
  d2-deformable proposals --config-file configs/VOC-Detection/rpn_R_101.yaml \\
      --weights output/rpn/model_final.pth --output-dir proposals
  d2-deformable proposals --config-file YAML --weights CKPT --dataset NAME --dataset NAME

The config may also be that of a detector with an RPN. docs/proposals.md describes how to train a
detector from the files.
"""


def parser():
    parser = command.parser("proposals", __doc__, EXAMPLE)
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
