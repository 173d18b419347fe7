"""FORMAT coco: one JSON file of instances."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_masks
from detectron2.structures import BoxMode

from ..utils.text import one_line
from .annotation_file import AnnotationFile
from .checks import (
    AnnotationReport,
    class_indices,
    existing,
    named_path,
    replace_metadata,
    unknown_class,
)
from .coco_json import read_instances

LONGEST_OUTLINE = 1e6  # pixels: pycocotools takes 100 bytes for each to draw a polygon


@dataclass(frozen=True)
class COCOFormat(AnnotationFile):
    """The fields of FORMAT coco (see `AnnotationFile`); `load` reads the annotations.

    Categories of the json that have no annotation may be left out of `classes`. Empty: the json's
    categories in the order of their ids.

    "json_file" is left out of the metadata on purpose: evaluators then convert the loaded dicts.
    The ground truth is therefore the one trained on (boxes clipped, empty ones dropped), and JSON
    files without the "area" and "iscrowd" that pycocotools requires work as well.
    """

    missing = "FORMAT coco needs ANNOTATIONS, the path of its json"

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format.

        The dicts are those of Detectron2's `load_coco_json`, in the order of the images' ids, with
        these differences: a box stays if its polygons are degenerate (they are left out), and each
        annotation has its "id". That function is not called, since it takes only a path.

        Sets `thing_classes`, `thing_dataset_id_to_contiguous_id` and, if a category has keypoints,
        `keypoint_names` and `keypoint_flip_map` in the metadata of `name`.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        file = existing(self.root / self.annotations, "ANNOTATIONS")
        images = existing(self.root / self.images, "IMAGES", "folder")
        content = read_instances(file)
        if not content["images"]:
            raise ValueError(f"{file}: holds no image")
        id_map = self._contiguous_ids(content, file)
        report = report or AnnotationReport()
        annotations = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        for number, times in Counter(a["id"] for a in content["annotations"]).items():
            if times > 1:
                report.add("repeated", f"annotation {number}")
        dicts = []
        for image in sorted(content["images"], key=lambda image: image["id"]):
            with report.image():
                where = f"{file}: image {image['id']}, field file_name,"
                path = named_path(images, image["file_name"], "IMAGES", where)
                path = existing(path, f"IMAGES and a file_name of {file}")
                dicts.append(_record(image, path, annotations[image["id"]], id_map, report))
        report.log(name)
        names = {c["id"]: c["name"] for c in content["categories"]}
        in_order = sorted(id_map, key=id_map.get)
        if in_order != sorted(in_order):
            # COCO's evaluator names classes in the order of their ids. With the ids of the file it
            # would report APs under the wrong classes. The loaded dicts hold class indices anyway.
            id_map = {index: index for index in id_map.values()}
        replace_metadata(
            name,
            thing_classes=[names[i] for i in in_order],
            thing_dataset_id_to_contiguous_id=id_map,
            **_keypoints_metadata(content["categories"]),
        )
        return dicts

    def _contiguous_ids(self, content: dict, file: Path) -> dict[int, int]:
        """{category id of the json: class index}."""
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        known = set(names.values())
        indices = class_indices(self.classes or names.values())
        for label in indices:
            if label not in known:
                raise ValueError(
                    f"{file}: has no class {label!r} of CLASSES; it has "
                    f"{one_line(', '.join(names.values()), 1000)}"
                )
        for annotation in content["annotations"]:
            label = names[annotation["category_id"]]
            if label not in indices:
                raise unknown_class(f"{file}: annotation {annotation['id']}", label, indices)
        return {i: indices[label] for i, label in names.items() if label in indices}


def _record(image: dict, path: Path, annotations, id_map: dict, report: AnnotationReport) -> dict:
    objects = []
    for annotation in annotations:
        if box := _clipped(annotation["bbox"], image, path, report):
            box["category_id"] = id_map[annotation["category_id"]]
            objects.append(box | _extras(annotation, image, path, report))
    return {
        "file_name": str(path),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": objects,
    }


def _clipped(box, image: dict, path: Path, report: AnnotationReport) -> dict | None:
    """The box, clipped to its image if it reaches beyond it; None if nothing is left of it."""
    x0, y0, width, height = box
    corners = [x0, y0, x0 + width, y0 + height]
    inside = report.clip(corners, image["width"], image["height"], path)
    if inside is None:
        return None
    if inside != corners:
        return {"bbox": inside, "bbox_mode": BoxMode.XYXY_ABS}
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}


def _extras(annotation: dict, image: dict, path: Path, report: AnnotationReport) -> dict:
    """What an object has beside its box and class."""
    found = {"id": annotation["id"], "iscrowd": int(annotation.get("iscrowd", 0))}
    if found["iscrowd"]:
        report.add("crowd", path)
    if "difficult" in annotation:
        found["difficult"] = int(annotation["difficult"])
        if found["difficult"]:
            report.add("difficult", path)
    if shape := annotation.get("segmentation"):
        if mask := _mask(shape, image):
            found["segmentation"] = mask
        else:
            report.add("maskless", path)
    points = annotation.get("keypoints")
    if points and len(points) % 3 == 0:
        # COCO's keypoints are indices of pixels, Detectron2's are coordinates.
        found["keypoints"] = [v + 0.5 if i % 3 < 2 else v for i, v in enumerate(points)]
    return found


def _mask(shape, image: dict):
    """Polygons but the degenerate ones, or a compressed run-length code; None if none is left."""
    if isinstance(shape, list):
        return [polygon for polygon in shape if _is_polygon(polygon)] or None
    size, counts = [image["height"], image["width"]], shape["counts"]
    if shape["size"] != size:
        return None
    if isinstance(counts, str):
        whole = _pixels_of(counts) == size[0] * size[1]
        return {"size": size, "counts": counts} if whole else None
    if sum(counts) != size[0] * size[1]:
        return None
    return coco_masks.frPyObjects({"size": size, "counts": [int(n) for n in counts]}, *size)


def _pixels_of(code: str) -> int:
    """Sum of the runs of a compressed run-length code; -1 if it is damaged.

    pycocotools leaves it to chance what lies behind the end of a short code. The code is that of
    its rleToString: digits in base 32, lowest first, whose bit 5 says that another one follows and
    whose last bit 4 is the sign. From the fourth on, a run is its difference from the last but one.
    """
    digits = np.array([ord(letter) - 48 for letter in code], int)
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] + 1 < len(digits) or digits.min() < 0 or digits.max() > 63:
        return -1
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 7:  # no run of pycocotools, which has 32 bits
        return -1
    starts = ends + 1 - lengths
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << places, starts)
    values -= (digits[ends] >> 4 & 1) << 5 * lengths
    runs = np.concatenate([values[:1], values[1::2].cumsum(), values[2::2].cumsum()])
    return int(runs.sum()) if runs.min() >= 0 else -1


def _is_polygon(polygon: list) -> bool:
    """Whether a polygon has 3 or more points and an outline of at most LONGEST_OUTLINE."""
    if len(polygon) % 2 or len(set(zip(polygon[::2], polygon[1::2]))) < 3:
        return False
    if (max(polygon) - min(polygon)) * len(polygon) <= LONGEST_OUTLINE:  # nearly always
        return True
    points = np.array(polygon, float).reshape(-1, 2)
    with np.errstate(over="ignore"):
        edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
        return float(edges.sum()) <= LONGEST_OUTLINE


def _keypoints_metadata(categories: list[dict]) -> dict:
    """Names of the keypoints, and which two change places when an image is mirrored."""
    names = next((c["keypoints"] for c in categories if c.get("keypoints")), None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return {"keypoint_names": None, "keypoint_flip_map": None}
    pairs = [(name, name.replace("left", "right")) for name in names if "left" in name]
    return {
        "keypoint_names": names,
        "keypoint_flip_map": [pair for pair in pairs if pair[1] in names],
    }
