#!/usr/bin/env python
"""Write an RPN's proposals on data sets as proposal files of Detectron2, DATASET_proposals.pkl.

python tools/dump_proposals.py --config-file configs/VOC-Detection/rpn_R_101.yaml \\
    --output-dir proposals voc_2007_trainval voc_2012_trainval voc_2007_test \\
    --opts MODEL.WEIGHTS output/rpn/model_final.pth

The config may also be that of a detector with an RPN. Without names of data sets: all of the
config. docs/proposals.md trains a detector from the files.
"""

import argparse
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from d2_deformable.engine import dump_proposals, read_config


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="the YAML of the RPN")
    parser.add_argument("--output-dir", default="proposals", help="folder of the files (proposals)")
    parser.add_argument("datasets", nargs="*", help="registered data sets; default: the config's")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    setup_logger()
    try:
        cfg = read_config(args.config_file, args.opts)
        files = dump_proposals(cfg, args.datasets, Path(args.output_dir))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"dump_proposals: {error}")
    for file in files:
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
