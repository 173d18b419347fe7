#!/usr/bin/env python
"""Train or evaluate any model of this package from a YAML, with Detectron2's usual command line.

python train_net.py --config-file configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

from d2_deformable.cli import command, train

main = train.train_or_evaluate


def parser():
    return train.parser("train_net.py", epilog=None)


def parse_args(argv=None):
    return parser().parse_args(argv)


if __name__ == "__main__":
    command.run(train.main, parser())
