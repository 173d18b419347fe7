"""Export the weights of a training checkpoint in half precision, and print the file's sha256."""

from ..checkpoint import export_checkpoint
from ..utils.files import sha256
from . import command

EXAMPLE = """
example:
  d2-deformable export weights output/model_final.pth detector.pth
"""


def parser():
    parser = command.parser("export weights", __doc__, EXAMPLE)
    parser.add_argument("source", help="a checkpoint of a training, e.g. model_final.pth")
    parser.add_argument("target", help="the .pth to write")
    return parser


def main(args):
    export_checkpoint(args.source, args.target)
    print(f"{sha256(args.target)}  {args.target}")
