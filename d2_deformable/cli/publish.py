"""Export a finished run to the model zoo or to your own index, with the exported file's AP."""

import json

from ..model_zoo.publish import publish
from . import command

EXAMPLE = """
examples:
  d2-deformable publish output/model_zoo
  d2-deformable publish output/bolts --index zoo/index.json --namespace acme
"""


def parser():
    parser = command.parser("publish", __doc__, EXAMPLE)
    parser.add_argument(
        "output_dir",
        help="OUTPUT_DIR of the run; the package's zoo takes runs of a YAML in configs/model_zoo",
    )
    parser.add_argument("--trained-at", help="commit of the training (default: the current one)")
    parser.add_argument("--index", help="your own index file, created if it does not exist")
    parser.add_argument(
        "--namespace", default="", help="namespace of the names in that index, e.g. a lab's"
    )
    return parser


def main(args):
    name, entry = publish(args.output_dir, args.trained_at, args.index, args.namespace)
    print(f"d2_deformable://{name}\n{json.dumps(entry, indent=2)}")
