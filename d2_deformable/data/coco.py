"""FORMAT coco: one JSON file of instances, checked here and then read by Detectron2."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode

from .annotation_file import AnnotationFile
from .checks import AnnotationReport, existing, unknown_class


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
        """Load the data set in Detectron2's standard format, as `load_coco_json` does.

        Sets `thing_classes` and `thing_dataset_id_to_contiguous_id` in the metadata of `name`.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        file = existing(self.root / self.annotations, "ANNOTATIONS")
        images = existing(self.root / self.images, "IMAGES", "folder")
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file}: not a json file ({error})") from error
        _check(content, file)
        id_map = self._contiguous_ids(content, file)
        dicts = load_coco_json(str(file), str(images), extra_annotation_keys=["difficult"])
        report = report or AnnotationReport()
        kept = []
        for record in dicts:
            with report.image():
                existing(Path(record["file_name"]), f"IMAGES and a file_name of {file}")
                kept.append(_contiguous(record, id_map, report))
        report.log(name)
        names = {c["id"]: c["name"] for c in content["categories"]}
        in_order = sorted(id_map, key=id_map.get)
        if in_order != sorted(in_order):
            # COCO's evaluator names classes in the order of their ids. With the ids of the file it
            # would report APs under the wrong classes. The loaded dicts hold class indices anyway.
            id_map = {index: index for index in id_map.values()}
        MetadataCatalog.get(name).set(
            thing_classes=[names[i] for i in in_order],
            thing_dataset_id_to_contiguous_id=id_map,
        )
        return kept

    def _contiguous_ids(self, content: dict, file: Path) -> dict[int, int]:
        """{category id of the json: class index}."""
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        classes = self.classes or tuple(names.values())
        known = ", ".join(map(str, names.values()))
        for label in classes:
            if label not in names.values():
                raise ValueError(f"{file}: has no class {label!r} of CLASSES; it has {known}")
        for annotation in content["annotations"]:
            label = names[annotation["category_id"]]
            if label not in classes:
                raise unknown_class(f"{file}: annotation {annotation['id']}", label, classes)
        return {i: classes.index(label) for i, label in names.items() if label in classes}


def _contiguous(record: dict, id_map: dict, report: AnnotationReport) -> dict:
    """Clip the boxes of a record and replace category ids by class indices, in place."""
    record["annotations"] = [a for a in record["annotations"] if _clip(a, record, report)]
    for annotation in record["annotations"]:
        annotation["category_id"] = id_map[annotation["category_id"]]
        annotation.setdefault("iscrowd", 0)
        if annotation.get("difficult"):
            report.add("difficult", record["file_name"])
    return record


def _clip(annotation: dict, record: dict, report: AnnotationReport) -> bool:
    """Clip the box of `annotation` to its image, in place; return False if nothing is left."""
    x0, y0, width, height = annotation["bbox"]
    box = (x0, y0, x0 + width, y0 + height)
    inside = report.clip(box, record["width"], record["height"], record["file_name"])
    if inside and inside != list(box):
        annotation.update(bbox=inside, bbox_mode=BoxMode.XYXY_ABS)
    return inside is not None


def _check(content, file: Path) -> None:
    """Reject what `load_coco_json` or pycocotools would fail on; errors name `file` and the id."""

    def fail(problem):
        raise ValueError(f"{file}: {problem}")

    def is_number(value):
        return type(value) in (int, float) and math.isfinite(value)

    for part in ("images", "annotations", "categories"):
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            fail(f"expected COCO's instance format, with a list of objects named {part!r}")
        ids = [item.get("id") for item in items]
        one_type = all(type(i) is int for i in ids) or all(type(i) is str for i in ids)
        if not one_type or len(set(ids)) < len(ids):
            fail(f"every entry of {part!r} needs a unique id, all numbers or all text")
    if not content["images"]:
        fail("holds no image")
    for image in content["images"]:
        if not isinstance(image.get("file_name"), str):
            fail(f"image {image['id']} has no file_name")
        if not all(is_number(image.get(side)) and image[side] > 0 for side in ("width", "height")):
            fail(f"image {image['id']} needs a positive width and height")
    names = [category.get("name") for category in content["categories"]]
    if not all(isinstance(label, str) for label in names) or len(set(names)) < len(names):
        fail(f"every category needs a unique name, got {names}")
    ids = {part: {item["id"] for item in content[part]} for part in ("images", "categories")}
    for annotation in content["annotations"]:
        here = f"annotation {annotation['id']}"
        box, shape = annotation.get("bbox"), annotation.get("segmentation")
        for key, part in (("image_id", "images"), ("category_id", "categories")):
            value = annotation.get(key)
            if not isinstance(value, int | str) or value not in ids[part]:
                fail(f"{here} has {key} {value!r}, which is not an id in {part!r}")
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            fail(f"{here} needs a bbox of four finite numbers (x0, y0, width, height), got {box}")
        polygons = isinstance(shape, list) and all(isinstance(polygon, list) for polygon in shape)
        code = isinstance(shape, dict) and {"counts", "size"} <= shape.keys()
        code = code and len(shape["size"]) == 2 and all(map(is_number, shape["size"]))
        if polygons:
            polygons = all(is_number(value) for polygon in shape for value in polygon)
        if shape and not polygons and not code:
            fail(f"{here} has a segmentation that is neither polygons nor a run-length code")
        if annotation.get("iscrowd", 0) not in (0, 1):
            fail(f"{here} has iscrowd {annotation['iscrowd']!r}, expected 0 or 1")
        if annotation.get("ignore"):
            fail(
                f"{here} is marked 'ignore', which Detectron2 does not read: mark it 'difficult' "
                "or 'iscrowd' instead, or remove it"
            )
