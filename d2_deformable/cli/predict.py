"""Detect objects in images, folders, globs and videos."""

import time
from collections import Counter
from pathlib import Path

from ..inference import Predictor, find_inputs
from ..inference.outputs import KINDS, OutputFolder
from ..inference.run import predict_files
from ..utils.text import count
from . import command

EXAMPLE = """
examples:
  d2-deformable predict photos/ --model output --threshold 0.7
  d2-deformable predict a.jpg 'b/*.png' clip.mp4 --save images,csv --output found
  d2-deformable predict a.jpg --model my.yaml --weights my.pth --opts INPUT.MIN_SIZE_TEST 600

The folder of results has predictions.jsonl (a line of settings, then a line for each image or
frame) and what --save names: images (with boxes, masks or classes drawn), json, coco (a data set
with scores), csv, txt (YOLO's labels with scores). Segmentation also writes masks/, images of class
indices.
"""


def parser():
    parser = command.parser("predict", __doc__, EXAMPLE)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, glob or video")
    command.add_predictor_arguments(parser)
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (0.5)")
    parser.add_argument("--classes", nargs="+", default=[], help="keep these classes only")
    parser.add_argument("--output", default="output/predict", metavar="FOLDER")
    parser.add_argument("--save", default="images,json", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--batch", type=int, default=1, help="images per step (1)")
    parser.add_argument(
        "--skip-existing", action="store_true", help="keep the results of an interrupted run"
    )
    return parser


def main(args):
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; expected 1 or more")
    files = find_inputs(args.inputs, but=Path(args.output))
    predictor = Predictor(
        args.model,
        args.weights,
        threshold=args.threshold,
        only=args.classes,
        device=args.device,
        overrides=args.opts,
    )
    settings = {
        "model": str(args.model),
        "weights": str(predictor.weights),
        "threshold": args.threshold,
        "classes": args.classes,
        "opts": args.opts,
    }
    kinds = args.save.split(",")
    names = predictor.class_names
    folder = OutputFolder(args.output, settings, names, kinds, files, args.skip_existing)
    started = time.perf_counter()
    problems = predict_files(predictor, files, folder, args.batch)
    seconds = time.perf_counter() - started
    written = folder.finish()
    print(summary(folder.records(), seconds))
    if written:
        print("wrote " + ", ".join(map(str, written)))
    if problems:
        raise OSError(f"could not read {len(problems)} of {count(len(files), 'file')}, see above")


def summary(records, seconds: float) -> str:
    """Describe what was found: "3 images, 7 detections (disk 4, star 3), 1.2 s"."""
    counts, names = Counter(), Counter()
    for record in records:
        if "frames" in record:
            continue
        counts["frame" if "frame" in record else "image"] += 1
        names.update(record.get("names", ()))
    seen = [count(n, kind) for kind, n in sorted(counts.items(), reverse=True)]
    if not counts:
        return "nothing could be read"
    found = count(names.total(), "detection")
    if names:
        found += " (" + ", ".join(f"{name} {n}" for name, n in names.most_common(8)) + ")"
    return f"{' and '.join(seen)}, {found}, {seconds:.1f} s"
