#!/usr/bin/env python
"""Export the weights of a training checkpoint in half precision, and print the file's sha256.

python tools/export_checkpoint.py output/model_final.pth detector.pth
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS detector.pth
"""

import argparse
import sys

from d2_deformable.checkpoint import export_checkpoint
from d2_deformable.model_zoo.catalog import sha256


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a checkpoint of a training, e.g. model_final.pth")
    parser.add_argument("target", help="the .pth to write")
    args = parser.parse_args(argv)
    try:
        export_checkpoint(args.source, args.target)
    except (OSError, ValueError) as error:
        sys.exit(f"export_checkpoint: {error}")
    print(f"{sha256(args.target)}  {args.target}")


if __name__ == "__main__":
    main()
