"""Write a YAML that trains a deformable network on your own labelled images.

Classes, anchors, image size and schedule are chosen from the data; comments give the reasons.
"""

from pathlib import Path

from ..model_zoo.new_config import SIZES, new_config
from . import command
from .data_check import add_data_arguments, read_fields

EXAMPLE = """
example:
  d2-deformable new --data ~/parts --format voc --output parts.yaml
  d2-deformable new --data ~/parts --format csv --size medium IMAGES photos

Sizes: small (half-width ResNet-18, trains on a CPU, nothing is downloaded), medium (ResNet-50),
large (ResNet-101).
"""


def parser():
    parser = command.parser("new", __doc__, EXAMPLE)
    add_data_arguments(parser, required=True)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the network (small)")
    parser.add_argument("--output", metavar="YAML", help="file to write (<folder>_<size>.yaml)")
    parser.add_argument("inputs", nargs="*", metavar="FIELD VALUE", help="see --format")
    return parser


def main(args):
    name = Path(args.data).expanduser().absolute().name
    file = Path(args.output or f"{name}_{args.size}.yaml")
    if file.exists():
        raise ValueError(f"{file}: exists already; choose another --output, or delete it")
    text = new_config(args.data, args.format, args.size, read_fields(args.inputs), file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file}; train with\n  d2-deformable train --config-file {file}")
