"""Write pictures and a self-contained report.html of a finished training run."""

from ..analysis.report import write_report
from . import command

EXAMPLE = """
examples:
  d2-deformable report output/demo
  d2-deformable report output/demo --num-images 8 --score-thresh 0.3 MODEL.DEVICE cpu
  d2-deformable report output/demo --beside output/earlier/model_final.pth
"""


def parser():
    parser = command.parser("report", __doc__, EXAMPLE)
    parser.add_argument("output_dir", help="OUTPUT_DIR of the run")
    parser.add_argument("--num-images", type=int, default=4, help="test images to show (4)")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="lowest score shown (0.5)")
    parser.add_argument(
        "--beside", default="", help="another checkpoint of this network, to compare"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser


def main(args):
    report = write_report(
        args.output_dir, args.num_images, args.score_thresh, args.opts, args.beside
    )
    print(f"wrote {report}")
