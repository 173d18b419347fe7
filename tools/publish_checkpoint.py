#!/usr/bin/env python
"""Export a finished run to the model zoo or to your own index, with the exported file's AP.

python tools/publish_checkpoint.py output/model_zoo
python tools/publish_checkpoint.py output/bolts --index zoo/index.json --namespace acme
"""

import argparse
import json
import sys

from d2_deformable.model_zoo.publish import publish


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "output_dir",
        help="OUTPUT_DIR of the run; the package's zoo takes runs of a YAML in configs/model_zoo",
    )
    parser.add_argument("--trained-at", help="commit of the training (default: the current one)")
    parser.add_argument("--index", help="your own index file, created if it does not exist")
    parser.add_argument(
        "--namespace", default="", help="namespace of the names in that index, e.g. a lab's"
    )
    args = parser.parse_args(argv)
    try:
        name, entry = publish(args.output_dir, args.trained_at, args.index, args.namespace)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"publish_checkpoint: {error}")
    print(f"d2_deformable://{name}\n{json.dumps(entry, indent=2)}")


if __name__ == "__main__":
    main()
