"""Check that a data set has what the heads of a network learn: boxes, masks and keypoints."""

from collections.abc import Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..utils.text import count


def check_targets(cfg, name: str, dicts: list[dict], source: str) -> None:
    """Check the objects of a data set with boxes.

    Args:
        name: of the data set, to read its metadata.
        dicts: its images in Detectron2's standard format.
        source: path of the annotations, for messages.

    Raises:
        ValueError: there is no object, or each is marked iscrowd; MODEL.MASK_ON and an object has
            no mask, or a run-length code that INPUT.MASK_FORMAT polygon does not support in
            training; MODEL.KEYPOINT_ON and an object lacks its keypoints.
    """
    if not any(record["annotations"] for record in dicts):
        raise ValueError(f"{name}: none of its images has an object, according to {source}")
    if not any(True for _ in _objects(dicts)):
        raise ValueError(
            f"{source}: every object of {name} is marked iscrowd, and training passes over such "
            "objects; set iscrowd 0 for single objects (CVAT writes masks with iscrowd 1)"
        )
    if cfg.MODEL.MASK_ON:
        is_trained_on = name in cfg.DATASETS.TRAIN
        needs_polygons = is_trained_on and cfg.INPUT.MASK_FORMAT == "polygon"
        for annotation, record in _objects(dicts):
            if problem := _mask_problem(annotation, needs_polygons):
                raise ValueError(f"{_place(annotation, record, source)} {problem}")
    if cfg.MODEL.KEYPOINT_ON:
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names is None:
            raise ValueError(
                f"{source}: has no keypoints, which MODEL.KEYPOINT_ON needs; expected FORMAT coco, "
                "with their names as 'keypoints' of a category. Or set MODEL.KEYPOINT_ON False"
            )
        expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        if len(names) != expected:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {expected}, but {source} names the "
                f"{count(len(names), 'keypoint')} {', '.join(names)}: set it to that number"
            )
        for annotation, record in _objects(dicts):
            if problem := _keypoints_problem(annotation, expected):
                raise ValueError(f"{_place(annotation, record, source)} {problem}")


def _objects(dicts: list[dict]) -> Iterator[tuple[dict, dict]]:
    """(annotation, record) of every object but crowds."""
    for record in dicts:
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd"):
                yield annotation, record


def _place(annotation: dict, record: dict, source: str) -> str:
    which = f"annotation {annotation['id']}" if "id" in annotation else "an object"
    return f"{source}: {which}, of {Path(record['file_name']).name},"


def _mask_problem(annotation: dict, needs_polygons: bool) -> str | None:
    mask = annotation.get("segmentation")
    if mask is None:
        return (
            "has no mask, which MODEL.MASK_ON needs; expected polygons of 3 or more "
            "points, or a run-length code of the image's size. Add it, remove the object, or set "
            "MODEL.MASK_ON False"
        )
    if needs_polygons and isinstance(mask, dict):
        return (
            "has a run-length code as its mask, but INPUT.MASK_FORMAT is polygon: set "
            "INPUT.MASK_FORMAT bitmask, which reads both"
        )
    return None


def _keypoints_problem(annotation: dict, expected: int) -> str | None:
    found = len(annotation.get("keypoints", ())) // 3
    if found == expected:
        return None
    return (
        f"has {count(found, 'keypoint')}, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is "
        f"{expected}; expected x, y and visibility of each, with 0, 0, 0 for those that are not "
        "labelled. Or set MODEL.KEYPOINT_ON False"
    )
