"""Convert a checkpoint of another project into weights of a model of this package."""

from ..checkpoint.convert import CONVERTERS, convert_checkpoint
from ..config import read_config
from . import command

EXAMPLE = """
examples:
  d2-deformable convert --from torchvision resnet50.pth backbone.pth \\
      --config-file configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml
  d2-deformable convert --from detectron2 model_final.pkl detector.safetensors \\
      --config-file YAML --keep roi_heads.box_predictor MODEL.ROI_HEADS.NUM_CLASSES 3

The command prints where each tensor went. If the model needs other settings than those of the
config, they are written as a YAML beside the weights, which is the config to use from then on.
"""


def parser():
    parser = command.parser("convert", __doc__, EXAMPLE)
    kinds = ", ".join(CONVERTERS)
    parser.add_argument("--from", dest="kind", required=True, choices=CONVERTERS, help=kinds)
    parser.add_argument("source", metavar="IN", help="the file of the other project")
    parser.add_argument("target", metavar="OUT", help="the .pth or .safetensors to write")
    parser.add_argument("--config-file", required=True, metavar="YAML", help="config of the model")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="prefix of tensors that keep initial values, e.g. for new classes; repeatable",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="if IN cannot be read safely, unpickle it anyway, which runs any code in it",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser


def main(args):
    conversion = convert_checkpoint(
        args.kind,
        args.source,
        args.target,
        read_config(args.config_file, args.opts),
        trust_pickle=args.trust_pickle,
        keep=args.keep,
        config_file=args.config_file,
    )
    print(conversion.table())
    for key, value in conversion.settings.items():
        print(f"setting: {key} {value}")
    for assumption in conversion.assumptions:
        print(f"assumed: {assumption}")
    for file in conversion.written:
        print(f"wrote {file}")
