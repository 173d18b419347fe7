"""Images per second of the train loader alone, by the number of its workers.

    python -m benchmarks.loader --config-file configs/VOC-Detection/rfcn_R_101_dconv3_dpool.yaml

Batches are taken as fast as they come, and thrown away: a training whose step takes longer never
waits. Without the data sets of the config, `--photographs FOLDER` takes the JPEG files of a folder,
each with two boxes.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from d2_deformable.config import read_config
from d2_deformable.data import build_train_loader, register_custom_datasets
from d2_deformable.utils.pixels import image_size

from .protocol import digits
from .results import Results, settings
from .table import terminal

PHOTOGRAPHS = "benchmark_photographs"


def records(folder: Path) -> list[dict]:
    """A record of each JPEG file in a folder and its subfolders."""
    found = []
    for file in sorted(folder.rglob("*.jpg")):
        width, height = image_size(file)
        box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        boxes = [[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]]
        found.append(
            {"file_name": str(file), "image_id": len(found), "width": width, "height": height}
            | {"annotations": [{**box, "bbox": corners} for corners in boxes]}
        )
    return found


def measure(cfg, workers: int, seconds: float) -> dict:
    """Take batches for some seconds, after those that are ready when the workers start."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    batches = iter(build_train_loader(cfg))
    for _ in islice(batches, 1 + workers * cfg.DATALOADER.PREFETCH_FACTOR):
        pass
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches))
    return {"images/s": digits(images / passed), "ms per image": digits(1e3 * passed / images)}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config-file", required=True, help="of a training")
    parser.add_argument("--photographs", type=Path, help="folder of JPEG files to load instead")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seconds", type=float, default=10, help="of each number of workers (10)")
    parser.add_argument("--json", type=Path, help="save rows here")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cfg = read_config(args.config_file, args.opts)
    if args.photographs:
        found = records(args.photographs)
        DatasetCatalog.register(PHOTOGRAPHS, lambda: found)
        MetadataCatalog.get(PHOTOGRAPHS).set(thing_classes=["thing"])
        cfg.DATASETS.TRAIN = (PHOTOGRAPHS,)
    register_custom_datasets(cfg)
    results = Results(args.json, settings(parser.prog, argv))
    for workers in args.workers:
        key = (f"{workers} workers", Path(args.config_file).stem, "")
        results.put(key, {"cells": measure(cfg, workers, args.seconds)})
    print(terminal(results.data))


if __name__ == "__main__":
    main()
