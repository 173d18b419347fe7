"""Check data sets before training: counts, histograms, problems by kind, and sample pictures.

Every image is decoded once. The exit status is 1 if training would stop.
"""

import sys

import yaml

from ..analysis.contact_sheet import choose_records, draw_contact_sheet
from ..data.custom import register_datasets
from ..data.discover import discover, name_splits
from ..data.inspection import inspect_datasets
from ..data.statistics import read_anchors
from ..data.summary import summarize
from . import command

EXAMPLE = """
example:
  d2-deformable data check configs/quick/cards_rfcn_R_18_dconv3_dpool.yaml
  d2-deformable data check --data ~/parts --format voc
"""
PICTURES = 8  # of each data set


def parser():
    parser = command.parser("data check", __doc__, EXAMPLE)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="CONFIG | KEY VALUE",
        help="YAML that would be trained, and keys to change; with --data, fields to change",
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--output", default="data_check.png", metavar="PNG", help="sample pictures (data_check.png)"
    )
    parser.add_argument("--all", action="store_true", help="name every file of each problem")
    return parser


def add_data_arguments(parser, required: bool = False) -> None:
    """Add the arguments of a folder of labelled images: --data and --format."""
    parser.add_argument("--data", required=required, metavar="ROOT", help="folder of the data")
    parser.add_argument(
        "--format",
        required=required,
        choices=("voc", "coco", "yolo", "csv", "mask"),
        help="format of its labels; KEY VALUE set its fields, such as IMAGES photos",
    )


def read_fields(opts) -> dict:
    """Read {field: value} of FIELD, VALUE, ....

    Raises:
        ValueError: a field without a value.
    """
    if len(opts) % 2:
        raise ValueError(f"{opts[-1]}: a field without a value")
    return {key: yaml.safe_load(value) for key, value in zip(opts[::2], opts[1::2])}


def main(args):
    if bool(args.data) != bool(args.format) or not (args.data or args.inputs):
        raise ValueError("give a CONFIG, or --data and --format")
    if args.data:
        cfg = None
        splits = discover(args.data, args.format, read_fields(args.inputs))
        custom = name_splits(args.data, splits)
        register_datasets(custom)
        names = list(custom)
    else:
        config_file, *overrides = args.inputs
        cfg = command.config_of(config_file, overrides)
        names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    found = inspect_datasets(names, cfg)
    anchors = cfg and read_anchors(cfg)
    for data in found:
        print(summarize(data, anchors, None if args.all else 5))
    samples = {data.name: choose_records(data.dicts, PICTURES) for data in found if data.dicts}
    if samples:
        classes = next(data.classes for data in found if data.dicts)
        draw_contact_sheet(samples, classes).savefig(args.output)
        print(f"wrote {args.output}")
    if any(data.stops_training for data in found):
        sys.exit("d2-deformable data check: training would stop, see ERROR above")
    print("no error: training can read these data")
