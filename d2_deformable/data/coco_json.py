"""Read the JSON of FORMAT coco as labelling tools write it, and check it."""

import sys
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from ..utils.pixels import check_pixels
from ..utils.text import is_text, one_line
from .checks import read_json


def read_instances(file: Path) -> dict:
    """Read a file of COCO's instance format.

    Numbers may be written as text ("996.0") and whole numbers as 7.0, and an id may be text in one
    place and a number in another. Names may be numbers. Of categories with the same name, those
    without annotations are left out: Roboflow adds a category for the whole data set, which may
    have the name of a class. Backslashes in file names separate folders. Ids of annotations are not
    needed and may occur twice; annotations without one are numbered from 1.

    Returns:
        the content, with "images", "annotations" and "categories"; all numbers are numbers.

    Raises:
        ValueError: the file is something else; the message names the id at fault.
    """
    content = read_json(file)
    try:
        return _check(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _check(content) -> dict:
    for part in ("images", "annotations", "categories"):
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError(
                f"not COCO's instance format, a mapping with a list of objects named {part!r}"
            )
    ids = {part: _unique_ids(content[part], part) for part in ("images", "categories")}
    for image in content["images"]:
        _check_image(image)
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = _whole(annotation.get("id"))
        if not isinstance(annotation["id"], int | str):
            annotation["id"] = number
        try:
            _check_annotation(annotation, ids)
        except ValueError as error:
            raise ValueError(f"annotation {annotation['id']} {error}") from None
    content["categories"] = _distinct(content["categories"], content["annotations"])
    return content


def _unique_ids(items: list[dict], part: str) -> set:
    for item in items:
        item["id"] = _whole(item.get("id"))
    ids = [item["id"] for item in items]
    one_type = all(type(i) is int for i in ids) or all(type(i) is str for i in ids)
    twice = _repeated(ids) if one_type else []
    if not one_type or twice:
        raise ValueError(
            f"every entry of {part!r} needs a unique id, all numbers or all text"
            + (f"; {one_line(', '.join(map(str, twice[:5])))} occurs twice" if twice else "")
        )
    return set(ids)


def _repeated(values) -> list:
    return [value for value, times in Counter(values).items() if times > 1]


def _check_image(image: dict) -> None:
    if not isinstance(image.get("file_name"), str):
        raise ValueError(f"image {image['id']} has no file_name")
    image["file_name"] = image["file_name"].replace("\\", "/")
    for side in ("width", "height"):
        value = _number(image.get(side))
        if value is None or value <= 0:
            raise ValueError(f"image {image['id']} needs a positive width and height")
        image[side] = _whole(value)
    try:
        check_pixels(image["width"] * image["height"])
    except ValueError as error:
        raise ValueError(f"image {image['id']}: {error}") from None


def _check_annotation(annotation: dict, ids: dict[str, set]) -> None:
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        value = annotation.get(key)
        annotation[key] = _reference(value, ids[part])
        if annotation[key] is None:
            raise ValueError(f"has {key} {one_line(repr(value))}, which is not an id in {part!r}")
    box = annotation.get("bbox")
    annotation["bbox"] = _numbers(box)
    if annotation["bbox"] is None or len(box) != 4:
        raise ValueError(
            f"needs a bbox of four finite numbers (x0, y0, width, height), got {one_line(box)}"
        )
    if shape := annotation.get("segmentation"):
        annotation["segmentation"] = _shape(shape) or [[]]  # degenerate
    # Masks and keypoints in a wrong form stop only a network that needs them.
    if "keypoints" in annotation:
        annotation["keypoints"] = _numbers(annotation["keypoints"])
    for flag in ("iscrowd", "ignore", "difficult"):
        if flag in annotation:
            value = annotation[flag]
            annotation[flag] = _number(value or 0)
            if annotation[flag] not in (0, 1):
                raise ValueError(f"has {flag} {one_line(repr(value))}, expected 0 or 1")
    if annotation.get("ignore"):
        raise ValueError(
            "is marked 'ignore', which Detectron2 does not read: mark it 'difficult' or 'iscrowd' "
            "instead, or remove it"
        )


def _reference(value, ids: set):
    """The one of `ids` that `value` means; None if there is none."""
    value = _whole(value)
    if not isinstance(value, int | str):
        return None
    alike = [value, str(value)]
    with suppress(ValueError):
        alike.append(int(value))
    return next((known for known in alike if known in ids), None)


def _whole(value):
    """A number without fraction as int: pandas writes the id 7 as 7.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shape(shape):
    """Polygons, or a run-length code, with numbers; None for anything else."""
    if isinstance(shape, dict):
        size, counts = _numbers(shape.get("size")), shape.get("counts")
        if isinstance(counts, list):
            counts = _numbers(counts)
            is_code = counts is not None and all(n >= 0 and n == int(n) for n in counts)
        else:
            is_code = isinstance(counts, str)
        return {"size": size, "counts": counts} if is_code and size and len(size) == 2 else None
    polygons = [_numbers(polygon) for polygon in shape] if isinstance(shape, list) else [None]
    return None if None in polygons else polygons


def _numbers(values) -> list | None:
    """Finite numbers of a list of numbers, or of text that is a number; None for anything else."""
    numbers = [_number(value) for value in values] if isinstance(values, list) else [None]
    return None if None in numbers else numbers


def _number(value) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    # A comparison, since `math.isfinite` overflows on integers of hundreds of digits.
    is_number = type(value) in (int, float, bool) and abs(value) <= sys.float_info.max
    return value if is_number else None


def _distinct(categories: list[dict], annotations: list[dict]) -> list[dict]:
    """Categories with different names, see `read_instances`."""
    for category in categories:
        if type(category.get("name")) is int:
            category["name"] = str(category["name"])
    names = [category.get("name") for category in categories]
    if not all(isinstance(name, str) and is_text(name) for name in names):
        raise ValueError(f"every category needs a unique name, got {one_line(names)}")
    used = {annotation["category_id"] for annotation in annotations}
    alike = defaultdict(list)
    for category in categories:
        alike[category["name"]].append(category["id"])
    kept = set()
    for name, ids in alike.items():
        of_name = [i for i in sorted(ids) if i in used] or [max(ids)]  # a group comes first
        if len(of_name) > 1:
            raise ValueError(
                f"every category needs a unique name, got {one_line(names)}; {one_line(name)!r} is "
                f"that of the ids {one_line(', '.join(map(str, of_name)))}, which all have "
                "annotations"
            )
        kept.update(of_name)
    return [category for category in categories if category["id"] in kept]
