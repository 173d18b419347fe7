#!/usr/bin/env python
"""Write pictures and a self-contained report.html of a finished training run.

python tools/write_report.py output/demo
python tools/write_report.py output/demo --num-images 8 --score-thresh 0.3 MODEL.DEVICE cpu
python tools/write_report.py output/demo --beside output/earlier/model_final.pth
"""

import argparse
import sys

from detectron2.utils.logger import setup_logger

from d2_deformable.analysis.report import write_report


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", help="OUTPUT_DIR of the run")
    parser.add_argument("--num-images", type=int, default=4, help="test images to show (4)")
    parser.add_argument("--score-thresh", type=float, default=0.5, help="lowest score shown (0.5)")
    parser.add_argument(
        "--beside", default="", help="another checkpoint of this network, to compare"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_intermixed_args(argv)
    setup_logger(name="d2_deformable")
    try:
        report = write_report(
            args.output_dir, args.num_images, args.score_thresh, args.opts, args.beside
        )
    except (OSError, ValueError) as error:
        sys.exit(f"write_report: {error}")
    print(f"wrote {report}")


if __name__ == "__main__":
    main()
