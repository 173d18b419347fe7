"""FORMAT yolo: a data.yaml, and one text file of boxes in fractions of the image for each image."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.structures import BoxMode

from ..utils.config_files import check_size
from ..utils.paths import leads_out
from ..utils.pixels import image_size
from ..utils.text import count, is_text, one_line
from .checks import (
    AnnotationReport,
    existing,
    named_path,
    read_split,
    read_text,
    replace_metadata,
)
from .images import in_any_case, is_image, visible_files


@dataclass(frozen=True)
class YOLOFormat:
    """The fields of FORMAT yolo; `load` reads the labels.

    The labels of images/a/b.jpg are labels/a/b.txt, where the last folder called images counts, or
    b.txt beside the image. A file that is empty or missing means that the image has no object.

    Args:
        root: folder of the data set.
        annotations: path of the data.yaml under `root`. Empty: there is none, as Label Studio and
            labelImg write it; give `classes`, and a path as `split`.
        split: a key of the data.yaml (train, val, ...), whose value is a folder, a text file of
            images, or a list of these; or the path of a folder or text file under `root`.
        classes: names of the indices 0, 1, ...; empty: `names` of the data.yaml.

    Raises:
        ValueError: `annotations` and `classes` are both empty.
    """

    root: Path = Path()
    annotations: str = "data.yaml"
    split: str = "train"
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.annotations and not self.classes:
            raise ValueError(
                "FORMAT yolo needs ANNOTATIONS, the path of its data.yaml, or CLASSES, the names "
                "of the indices 0, 1, ... in the labels"
            )

    @property
    def source(self) -> str:
        """Path of the annotations."""
        return str(self.root / self.annotations)

    def metadata(self) -> dict:
        known = {"thing_classes": list(self.classes)} if self.classes else {}
        return {**known, "image_root": str(self.root)}

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format; image_id is the path under `root`.

        Polygons, as of segmentation labels, become the boxes around them, and keypoints are left
        out. Sets `thing_classes` in the metadata of `name`.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        content, classes = self.content()
        report = report or AnnotationReport()
        images = self._images(content)
        dicts = []
        for image, listed_in in images.items():
            with report.image():
                size = image_size(existing(image, listed_in))
                dicts.append(self._record(image, size, classes, "kpt_shape" in content, report))
        if len(report.files["unlabelled"]) == len(images):
            raise FileNotFoundError(
                f"{_label_file(image)}: no such file, nor one for any other of the {len(images)} "
                "images; labels lie in a folder labels next to images, or beside their images"
            )
        report.log(name)
        replace_metadata(name, thing_classes=list(classes))
        return dicts

    def content(self) -> tuple[dict, tuple[str, ...]]:
        """Read the data.yaml and the class names, which CLASSES may give instead.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        content = {}
        if self.annotations:
            content = _read_yaml(existing(self.root / self.annotations, "ANNOTATIONS"))
        return content, self.classes or _class_names(content, self.source)

    def _images(self, content: dict) -> dict[Path, str]:
        """{image: where it is listed} of the split, in order."""
        source = Path(self.source)
        folders = [self.root]
        where, entries = "SPLIT", self.split
        if self.annotations:
            folders = [source.parent / str(content.get("path") or ""), source.parent, self.root]
            if content.get(self.split):
                where, entries = f"{self.split} of {source}", content[self.split]
        images = {}
        for entry in entries if isinstance(entries, list) else [entries]:
            path = self._find(str(entry), folders, where)
            if path is None:
                splits = [key for key in content if key in ("train", "val", "valid", "test")]
                known = ""
                if self.annotations:
                    known = f"; {source} has the splits {', '.join(splits) or '(none)'}"
                raise FileNotFoundError(
                    f"{one_line(folders[0] / str(entry), 1000)}: no such folder or list of images, "
                    f"from {where}{known}"
                )
            if path.is_dir():
                found = [p for p in visible_files(path) if is_image(p)]
                if not found:
                    raise ValueError(f"{path}: holds no image, from {where}")
                images |= dict.fromkeys(found, where)
            else:
                for line, listed_in in read_split(path, "with"):
                    found = self._find(line, [path.parent, *folders], listed_in)
                    images[found or folders[0] / line] = listed_in
        return images

    def _find(self, entry: str, folders, where: str) -> Path | None:
        """The first existing path under `root` that `entry` means in one of `folders`.

        Roboflow writes ../train/images for train/images beside the data.yaml.

        Raises:
            ValueError: all that exist lie out of `root`.
        """
        entry = entry.strip().replace("\\", "/")
        outside = None
        for name in (entry, entry.removeprefix("../")):
            for path in (folder / name for folder in folders):
                if os.path.exists(path):
                    # Relative to ROOT, which may itself be relative, and without "..".
                    found = os.path.relpath(path, self.root)
                    if not leads_out(self.root, found):
                        return self.root / found
                    outside = outside or found
        return named_path(self.root, outside, "ROOT", where) if outside else None

    def _record(self, image: Path, size, classes, has_keypoints: bool, report) -> dict:
        width, height = size
        label = _label_file(image)
        if not os.path.isfile(label):
            report.add("unlabelled", image)
        inside = image.is_relative_to(self.root)
        return {
            "file_name": str(image),
            "image_id": (image.relative_to(self.root) if inside else image).as_posix(),
            "width": width,
            "height": height,
            "annotations": [
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": index,
                    "iscrowd": 0,
                }
                for index, corners in _read_labels(label, classes, has_keypoints)
                if (box := report.clip(_pixels(corners, width, height), width, height, label))
            ],
        }


def _label_file(image: Path) -> Path:
    """Path of the labels of an image; the one in a folder labels, if there are none."""
    beside = in_any_case(image.with_suffix(".txt"))
    *folders, file = beside.parts
    if "images" not in folders:
        return beside
    last = len(folders) - 1 - folders[::-1].index("images")
    usual = in_any_case(Path(*folders[:last], "labels", *folders[last + 1 :], file))
    return beside if os.path.isfile(beside) and not os.path.isfile(usual) else usual


def _read_labels(file: Path, classes, has_keypoints: bool):
    """Yield (class index, (x0, y0, x1, y1) in fractions of the image) of each line."""
    lines = read_text(file).splitlines() if os.path.isfile(file) else ()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        here, shown = f"{file}: line {number}", one_line(repr(line.strip()))
        try:
            index, *shape = map(float, line.split())
        except ValueError:
            raise ValueError(f"{here} must hold numbers, got {shown}") from None
        if not all(map(math.isfinite, (index, *shape))):
            raise ValueError(f"{here} must hold finite numbers, got {shown}")
        if index != int(index) or not 0 <= index < len(classes):
            raise ValueError(
                f"{here} has the class {index:g}; expected an index from 0 to {len(classes) - 1}, "
                f"for {one_line(', '.join(classes), 1000)}"
            )
        shape = shape[:4] if has_keypoints else shape
        if len(shape) < 4 or len(shape) % 2:
            raise ValueError(
                f"{here} has {len(shape)} numbers after the class; expected 4 (x and y of the "
                "centre, width, height) or x and y of each point of a polygon"
            )
        if max(map(abs, shape)) > 2:
            raise ValueError(
                f"{here} must hold fractions of the image's width and height, between 0 and 1; "
                f"got {max(shape, key=abs):g}, which looks like pixels"
            )
        if len(shape) == 4:
            x, y, width, height = shape
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            corners = (min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2]))
        yield int(index), corners


def _pixels(corners, width: int, height: int) -> tuple[float, ...]:
    return tuple(v * n for v, n in zip(corners, (width, height, width, height)))


def _read_yaml(file: Path) -> dict:
    text = read_text(file)
    try:
        check_size(text, "it")
        content = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises many types, such as IndexError on "!!int ''"
        raise ValueError(f"{file}: not YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a mapping with train, val and names")
    return content


def _class_names(content: dict, file: str) -> tuple[str, ...]:
    """Names in the order of their indices, of a list or a mapping from indices."""
    names = content.get("names")
    if isinstance(names, dict):
        indices = [int(i) if str(i).isdecimal() and len(str(i)) < 10 else i for i in names]
        if set(indices) != set(range(len(names))):
            raise ValueError(
                f"{file}: the keys of names must be the indices 0 to {len(names) - 1}, got "
                f"{one_line(', '.join(map(str, names)))}"
            )
        names = [name for _, name in sorted(zip(indices, names.values()))]
    if not names or not isinstance(names, list):
        raise ValueError(f"{file}: names must be a list of class names, or {{index: name}}")
    if any(isinstance(name, bool) or not isinstance(name, str | int) for name in names):
        raise ValueError(f"{file}: names must hold text, got {one_line(names)}; quote each name")
    names = tuple(map(str, names))
    if not all(map(is_text, names)):
        raise ValueError(f"{file}: names must hold text, got {one_line(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: a name occurs twice in {one_line(', '.join(names))}")
    if str(content.get("nc", len(names))) != str(len(names)):
        raise ValueError(
            f"{file}: nc is {one_line(content['nc'])}, but names has {count(len(names), 'class')}"
        )
    return names
