"""Print the config of a network as YAML: all that differs from the defaults, without _BASE_."""

import yaml

from .. import model_zoo
from ..config import changes
from . import command

EXAMPLE = """
The defaults are Detectron2's and, of the keys that this package adds, its own. The output is a
complete config file: `d2-deformable train --config-file` takes it.

example:
  d2-deformable models show warped_shapes_rfcn_R_18_dconv3_dpool
"""


def parser():
    parser = command.parser("models show", __doc__, EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="as listed by d2-deformable models")
    return parser


def main(args):
    name = model_zoo.find_config(args.name)
    print(f"# {name}")
    print(yaml.safe_dump(changes(model_zoo.get_config(name)), sort_keys=False, width=100), end="")
