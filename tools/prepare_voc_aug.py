#!/usr/bin/env python
"""Make the 10,582 training masks of PASCAL VOC 2012 + SBD, for configs/VOC-SemanticSegmentation.

python tools/prepare_voc_aug.py --sbd downloads/benchmark_RELEASE/dataset
python tools/prepare_voc_aug.py --masks downloads/SegmentationClassAug

VOC 2012 itself is expected at $DETECTRON2_DATASETS/VOC2012. The results are also written there.
"""

import argparse
import sys

from d2_deformable.data.checks import datasets_root
from d2_deformable.data.voc_aug import MASKS, prepare_voc_aug


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voc", help="folder of VOC 2012 ($DETECTRON2_DATASETS/VOC2012)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sbd", help="SBD's folder with cls/*.mat, train.txt and val.txt")
    source.add_argument("--masks", help="folder of PNGs, the commonly shared SegmentationClassAug")
    args = parser.parse_args(argv)
    voc = args.voc or datasets_root() / "VOC2012"
    try:
        written = prepare_voc_aug(voc, args.sbd, args.masks)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"prepare_voc_aug: {error}")
    print(f"wrote {written} masks into {voc}/{MASKS}; the others existed already")


if __name__ == "__main__":
    main()
