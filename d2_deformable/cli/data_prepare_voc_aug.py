"""Make the 10,582 training masks of PASCAL VOC 2012 + SBD, for configs/VOC-SemanticSegmentation."""

from ..data.checks import datasets_root
from ..data.voc_aug import MASKS, prepare_voc_aug
from . import command

EXAMPLE = """
examples:
  d2-deformable data prepare-voc-aug --sbd downloads/benchmark_RELEASE/dataset
  d2-deformable data prepare-voc-aug --masks downloads/SegmentationClassAug

VOC 2012 itself is expected at $DETECTRON2_DATASETS/VOC2012. The results are also written there.
"""


def parser():
    parser = command.parser("data prepare-voc-aug", __doc__, EXAMPLE)
    parser.add_argument("--voc", help="folder of VOC 2012 ($DETECTRON2_DATASETS/VOC2012)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sbd", help="SBD's folder with cls/*.mat, train.txt and val.txt")
    source.add_argument("--masks", help="folder of PNGs, the commonly shared SegmentationClassAug")
    return parser


def main(args):
    voc = args.voc or datasets_root() / "VOC2012"
    written = prepare_voc_aug(voc, args.sbd, args.masks)
    print(f"wrote {written} masks into {voc}/{MASKS}; the others existed already")
