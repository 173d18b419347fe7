"""Evaluate a checkpoint on DATASETS.TEST of a config."""

from . import command, train

EXAMPLE = """
example:
  d2-deformable eval --config-file configs/model_zoo/warped_shapes_rfcn_R_18_dconv3_dpool.yaml \\
      --weights d2_deformable://warped_shapes_rfcn_R_18_dconv3_dpool.pth
"""


def parser():
    parser = command.parser("eval", __doc__, EXAMPLE)
    command.add_model_arguments(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, one GPU each (1)")
    return parser


def main(args):
    arguments = ["--config-file", args.config_file, "--num-gpus", str(args.num_gpus), "--eval-only"]
    overrides = [*args.opts, "MODEL.WEIGHTS", args.weights]
    run = train.parser().parse_args([*arguments, *overrides])
    run.debug = args.debug
    train.main(run)
