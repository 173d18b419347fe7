"""Inspect data sets before training: every problem at once, each with its file."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..utils.pixels import read_image
from .checks import AnnotationReport
from .custom import check_loaded, check_names, load_reported
from .masks import read_mask
from .sizes import describe_difference
from .statistics import (
    Anchors,
    Objects,
    best_overlap,
    collect_objects,
    read_anchors,
    resize_objects,
    training_size,
)

TINY = 8  # pixels: half a cell of a feature map of stride 16

# {kind: meaning}, as `count` takes them. Training stops at an error, not at a warning.
ERRORS = {
    "data": "error of the data set",
    "missing": "image that cannot be found",
    "broken": "image that cannot be decoded",
    "size": "image of another size than in the annotations",
}
WARNINGS = AnnotationReport.MEANING | {
    "duplicate": "image with the same content as another",
    "tiny": f"object smaller than {TINY} x {TINY} pixels",
    "unused": "class without an object",
    "empty": "image without an object",
}


@dataclass
class Inspected:
    """One inspected data set.

    Args:
        name: of the data set.
        dicts: its images in Detectron2's standard format, without those that have an error.
        classes: class names in the order of their indices.
        counts: (K,) objects of each class; pixels, for class masks.
        images: (K,) images in which each class occurs.
        objects: in pixels of the network's input, or of the image without a network.
        overlaps: (M,) IoU of each object with its best anchor; None if there are no anchors.
        problems: {kind of ERRORS or WARNINGS: a line for each occurrence, which names the file}.
    """

    name: str
    dicts: list[dict] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    objects: Objects = field(default_factory=lambda: collect_objects([]))
    overlaps: np.ndarray | None = None
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def stops_training(self) -> bool:
        return any(self.problems.get(kind) for kind in ERRORS)

    @property
    def has_masks(self) -> bool:
        return hasattr(MetadataCatalog.get(self.name), "stuff_classes")


def inspect_datasets(names, cfg=None, progress: bool = True) -> list[Inspected]:
    """Load data sets, decode every image once, and collect statistics and problems.

    Args:
        names: of registered data sets.
        cfg: of the network that will train on them; None: sizes are those of the images.
        progress: show a progress bar, if on a terminal.

    Raises:
        ValueError: a name that no data set has.
    """
    check_names(names)
    anchors = cfg and read_anchors(cfg)
    found = [_load(name) for name in dict.fromkeys(names)]
    if cfg and not any(data.stops_training for data in found):
        try:
            check_loaded(cfg, {data.name: data.dicts for data in found})
        except ValueError as error:
            found[0].problems["data"].append(str(error))
    seen = {}
    total = sum(len(data.dicts) for data in found)
    disable = None if progress else True  # None: only on a terminal
    with tqdm(total=total, desc="decoding", unit="image", disable=disable) as bar:
        for data in found:
            _decode(data, seen, bar)
    for data in found:
        _measure(data, cfg, anchors)
    return found


def _load(name: str) -> Inspected:
    data, report = Inspected(name), AnnotationReport(collect=True)
    data.problems["data"] = report.errors
    try:
        data.dicts = load_reported(name, report)
    except (OSError, ValueError) as error:
        report.errors.append(str(error))
        return data
    for kind, files in report.files.items():
        data.problems[kind] += files
    meta = MetadataCatalog.get(name)
    data.classes = list(meta.get("stuff_classes") or meta.get("thing_classes") or ())
    data.counts = np.zeros(len(data.classes), int)
    data.images = np.zeros(len(data.classes), int)
    return data


class _Decoded(NamedTuple):
    """Result of decoding an image: a problem, or its digest and the pixels of each class."""

    kind: str = ""
    message: str = ""
    digest: bytes = b""
    pixels: np.ndarray | None = None


def _decode(data: Inspected, seen: dict, bar) -> None:
    """Decode all images of a data set, and leave out those with a problem.

    Args:
        seen: {digest: where an image with this content was seen}, shared by all data sets.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside Python's global lock
        records, data.dicts = data.dicts, []
        for record, result in zip(records, pool.map(_decode_image, records), strict=True):
            bar.update()
            if result.kind:
                data.problems[result.kind].append(result.message)
                continue
            data.dicts.append(record)
            place = f"{Path(record['file_name']).name} of {data.name}"
            if (first := seen.setdefault(result.digest, place)) != place:
                data.problems["duplicate"].append(f"{place} = {first}")
            if result.pixels is not None:
                pixels = result.pixels[: len(data.classes)]
                data.counts += pixels
                data.images += pixels > 0


def _decode_image(record: dict) -> _Decoded:
    file = record["file_name"]
    if not os.path.exists(file):
        return _Decoded("missing", file)
    try:
        height, width = read_image(file, "BGR").shape[:2]
        pixels = None
        if "sem_seg_file_name" in record:
            pixels = np.bincount(read_mask(record["sem_seg_file_name"]).ravel(), minlength=256)
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "blake2b").digest()
    except Exception as error:  # Pillow's readers raise many types on broken files
        return _Decoded("broken", str(error))
    if difference := describe_difference(record, (width, height)):
        return _Decoded("size", difference)
    return _Decoded(digest=digest, pixels=pixels)


def _measure(data: Inspected, cfg, anchors: Anchors | None) -> None:
    """Count objects, and add the problems that follow from the counts."""
    files = [Path(record["file_name"]).name for record in data.dicts]
    if not data.has_masks:
        data.objects = collect_objects(data.dicts)
        in_use = {*data.objects.images}
        data.problems["empty"] += [file for i, file in enumerate(files) if i not in in_use]
        if data.classes:
            data.counts = np.bincount(data.objects.classes, minlength=len(data.classes))
            pairs = np.unique(np.stack([data.objects.images, data.objects.classes], 1), axis=0)
            data.images = np.bincount(pairs[:, 1], minlength=len(data.classes))
        if cfg:
            data.objects = resize_objects(data.objects, *training_size(cfg))
        tiny = data.objects.sides < TINY
        data.problems["tiny"] += [files[i] for i in data.objects.images[tiny]]
        if anchors:
            data.overlaps = best_overlap(data.objects, anchors)
    if data.dicts:
        unused = [name for name, count in zip(data.classes, data.counts) if not count]
        data.problems["unused"] += unused
