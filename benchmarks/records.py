"""Memory and time that the records of a large data set take, in a training and its workers.

    python -m benchmarks.records --json benchmarks/results/records.json

One COCO file of up to a million images of two objects each is made up; all images are one small
file. Each row is measured in a process of its own, with the functions of a training: the checks
before it, the loader, and batches of its workers. Each worker first reads all records and collects
garbage, as a long training does in time. Whatever Python object a worker reads it also writes to
(the count of its references), and so gets a private copy of it. "kept as a list" shows that: it
holds the same records as a list of dicts. It needs Linux, and 6 GB of memory for a million images.
"""

import argparse
import gc
import json
import tempfile
import time
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from unittest.mock import patch

from detectron2.data import DatasetFromList
from PIL import Image

from d2_deformable.config import read_config
from d2_deformable.data import (
    DatasetMapper,
    build_train_loader,
    check_datasets,
    register_custom_datasets,
    train_loader,
)

from .fresh import in_fresh_process, peak_mib, private_mib, resident_mib, shared_mib
from .results import Results, settings
from .table import terminal

CONFIG = Path(__file__).parents[1] / "configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
COUNTS = (10_000, 100_000, 1_000_000)
WORKERS, BATCHES = 2, 50
SERIALIZED, LIST = "serialized (a training)", "kept as a list"
CLASSES = 3
WIDTH, HEIGHT = 64, 48


def write_data(folder: Path, count: int) -> None:
    """Write `count` images with two boxes each to annotations.json; all are image.jpg."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "image.jpg")
    image = {"file_name": "image.jpg", "width": WIDTH, "height": HEIGHT}
    box = {"bbox": [1.25, 2.5, 20.75, 18.5], "iscrowd": 0}

    def boxes():
        for i in range(2 * count):
            yield {**box, "id": i, "image_id": i // 2, "category_id": i % CLASSES}

    parts = {
        "categories": ({"id": i, "name": f"class {i}"} for i in range(CLASSES)),
        "images": ({**image, "id": i} for i in range(count)),
        "annotations": boxes(),
    }
    with open(folder / "annotations.json", "w") as file:  # in pieces: as a whole it takes gigabytes
        for index, (name, items) in enumerate(parts.items()):
            file.write(f'{"," if index else "{"}"{name}": [')
            for number, item in enumerate(items):
                file.write(("," if number else "") + json.dumps(item))
            file.write("]")
        file.write("}")


def config_of(folder: Path):
    """The config of a training on `write_data`'s folder, registered."""
    options = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", WORKERS]
    cfg = read_config(CONFIG, [*options, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES])
    fields = {"FORMAT": "coco", "ROOT": str(folder), "ANNOTATIONS": "annotations.json"}
    cfg.DATASETS.CUSTOM["made_up"] = type(cfg)(fields)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("made_up",), ()
    register_custom_datasets(cfg)
    return cfg


class ReadingMapper(DatasetMapper):
    """Reads all records and collects garbage before its first image, in every process that maps."""

    records = ()

    def __call__(self, record):
        for each in ReadingMapper.records:
            repr(each)
        ReadingMapper.records = ()
        gc.collect()
        return super().__call__(record)


def reading_loader(cfg, serialize: bool = True) -> train_loader.TrainLoader:
    """The loader of a training, whose workers soon have read all records.

    Args:
        serialize: False keeps the records as a list of dicts.
    """

    def keep(records, copy):
        ReadingMapper.records = DatasetFromList(records, copy, serialize)
        return ReadingMapper.records

    with (
        patch.object(train_loader, "DatasetFromList", keep),
        patch.object(train_loader, "DatasetMapper", ReadingMapper),
    ):
        return build_train_loader(cfg)


def memory_of_workers(loader) -> tuple[float, float]:
    """Means of `private_mib` and `shared_mib` of the workers, after some batches."""
    batches = iter(loader)
    before = {worker.pid for worker in active_children()}
    for _ in islice(batches, BATCHES):
        pass
    ReadingMapper.records = ()  # the workers have their own
    pids = [worker.pid for worker in active_children() if worker.pid not in before]
    private, shared = ([measure(pid) for pid in pids] for measure in (private_mib, shared_mib))
    return sum(private) / len(pids), sum(shared) / len(pids)


def measure(folder: str, kind: str) -> dict:
    """Measure one row in this process, whose memory must not hold other things."""
    cfg = config_of(Path(folder))
    before = resident_mib()
    start = time.perf_counter()
    check_datasets(cfg)
    checked = time.perf_counter()
    loader = reading_loader(cfg, kind == SERIALIZED)
    built = time.perf_counter()
    gc.collect()
    peak, held = peak_mib() - before, resident_mib() - before
    private, shared = memory_of_workers(loader)
    return {
        "checks_s": checked - start,
        "build_s": built - checked,
        "peak_mib": peak,
        "held_mib": held,
        "worker_private_mib": private,
        "worker_pss_mib": shared,
    }


UNITS = {
    "checks_s": "s, checks before training",
    "build_s": "s, building the loader",
    "peak_mib": "MiB at the peak, main process",
    "held_mib": "MiB after it, main process",
    "worker_private_mib": "MiB private, each worker",
    "worker_pss_mib": "MiB as shared out, each worker",
}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.records", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="images")
    parser.add_argument("--json", type=Path, help="save rows here; rows of the file are continued")
    args = parser.parse_args(argv)
    about = settings(parser.prog, argv)
    try:
        results = Results(args.json, about)
    except ValueError as error:
        parser.error(str(error))
    for count in args.counts:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), count)
            for kind in (SERIALIZED, LIST):
                key = (f"{count:,} images", kind, "")
                if results.row(key) is None:
                    measured = in_fresh_process(measure, folder, kind)
                    cells = {UNITS[name]: round(value, 1) for name, value in measured.items()}
                    results.put(key, {"cells": cells})
    print(terminal(results.data))


if __name__ == "__main__":
    main()
