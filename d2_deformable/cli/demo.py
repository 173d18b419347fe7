"""Train a deformable R-FCN on drawn shapes, and compare it with the packaged one in a report."""

from ..analysis.report import write_report
from ..inference import DEFAULT_MODEL
from ..model_zoo import get_checkpoint_url, get_config_file
from . import command, train

CONFIG = "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
EXAMPLE = """
example:
  d2-deformable demo --output output/demo

It takes at most 10 minutes on 2 cores, and needs no data. The data set is drawn first.
"""


def parser():
    parser = command.parser("demo", __doc__, EXAMPLE)
    parser.add_argument("--output", default="output/demo", metavar="FOLDER")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser


def main(args):
    file = ["--config-file", get_config_file(CONFIG)]
    training = train.parser().parse_args([*file, *args.opts, "OUTPUT_DIR", args.output])
    training.debug = args.debug
    train.main(training)
    print(f"wrote {write_report(args.output, beside=get_checkpoint_url(DEFAULT_MODEL))}")
