"""FORMAT voc: one XML per image, as in PASCAL VOC or written by labelImg, CVAT, Roboflow, ..."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from detectron2.structures import BoxMode

from ..utils.pixels import image_size
from ..utils.text import one_line
from .checks import (
    AnnotationReport,
    class_indices,
    decode,
    existing,
    named_path,
    read_split,
    unknown_class,
)
from .images import ImageFolder, in_any_case, stems

DECLARATION = re.compile("<!(ENTITY|ATTLIST)")


@dataclass(frozen=True)
class VOCFormat:
    """The fields of FORMAT voc; `load` reads the annotations.

    Args:
        root: folder of the data set.
        images: folder of the images, of any suffix, under `root`.
        annotations: folder of the XML files under `root`.
        split: <split> for ImageSets/Main/<split>.txt, or the path of a text file under `root`:
            one image per line, without suffix. Empty: every XML file of `annotations`.
        classes: names in the order of their indices.

    Raises:
        ValueError: `classes` is empty.
    """

    root: Path = Path()
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    split: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.classes:
            raise ValueError(
                "FORMAT voc needs CLASSES, as a list or a text file: names collected from the "
                "annotations would number the classes differently wherever a split lacks one"
            )

    @property
    def source(self) -> str:
        """Path of the annotations."""
        return str(self.root / self.annotations)

    def metadata(self) -> dict:
        return {"thing_classes": list(self.classes), "image_root": str(self.root / self.images)}

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format; image_id is the line of the split.

        A box is (xmin - 1, ymin - 1, xmax, ymax). VOC's corners are 1-based pixels that belong to
        the box, while ours are continuous edges; width and height are the same in both.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        annotations = existing(self.root / self.annotations, "ANNOTATIONS", "folder")
        images = ImageFolder(existing(self.root / self.images, "IMAGES", "folder"))
        report, indices = report or AnnotationReport(), class_indices(self.classes)
        dicts = []
        for stem, listed_in in self._stems(annotations):
            with report.image():
                xml = named_path(annotations, f"{stem}.xml", "ANNOTATIONS", listed_in)
                xml = existing(in_any_case(xml), listed_in)
                dicts.append(self._load_image(stem, xml, images, indices, report))
        report.log(name)
        return dicts

    def _stems(self, annotations: Path) -> list[tuple[str, str]]:
        """List (image, where it is listed) for each image of the split, in order."""
        if not self.split:
            found = stems(annotations, ".xml")
            if not found:
                raise ValueError(
                    f"{annotations}: no .xml file found; with an empty SPLIT every .xml of this "
                    "folder is used"
                )
            return [(stem, "ANNOTATIONS") for stem in found]
        by_name = self.root / "ImageSets" / "Main" / f"{self.split}.txt"
        by_path = self.root / self.split
        file = by_path if by_path.is_file() else existing(in_any_case(by_name), "SPLIT")
        return read_split(file)

    def _load_image(self, stem: str, xml: Path, images, indices, report) -> dict:
        root = read_xml(xml)
        if root.tag != "annotation":
            raise ValueError(f"{xml}: expected <annotation> at the top, got <{one_line(root.tag)}>")
        image = images.find(stem, root.findtext("filename"), xml)
        width, height = _size(root, xml) or image_size(image)
        return {
            "file_name": str(image),
            "image_id": stem,
            "width": width,
            "height": height,
            "annotations": [
                annotation
                for obj in root.iterfind("object")
                if (annotation := _load_object(obj, xml, width, height, indices, report))
            ],
        }


def _load_object(obj, xml: Path, width: int, height: int, indices, report) -> dict | None:
    label = (obj.findtext("name") or "").strip()
    if not label:
        raise ValueError(f"{xml}: an object has no <name>")
    if label not in indices:
        raise unknown_class(f"{xml}: an object", label, indices)
    corners = obj.find("bndbox")
    if corners is None:
        raise ValueError(f"{xml}: an object of class {label} has no <bndbox>")
    x0, y0, x1, y1 = (_number(corners, tag, xml) for tag in ("xmin", "ymin", "xmax", "ymax"))
    box = report.clip((x0 - 1, y0 - 1, x1, y1), width, height, xml)
    if box is None:
        return None
    flag = (obj.findtext("difficult") or "").strip()  # some tools leave it empty
    difficult = flag != "" and _number(obj, "difficult", xml) != 0
    if difficult:
        report.add("difficult", xml)
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": indices[label],
        "iscrowd": 0,
        "difficult": int(difficult),
    }


def read_xml(file: Path) -> ET.Element:
    """Read an XML file in the encoding of its byte order mark, or else in the one that it declares.

    Editors that change the encoding leave the declaration as it was.

    Raises:
        ValueError: the file is not well-formed, or declares entities or default attributes, by
            which a short file becomes a huge text.
    """
    content = file.read_bytes()
    declared = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)""", content)
    if declared and declared[1].lower().startswith((b"utf-16", b"utf-32")):
        declared = None  # as .NET declares UTF-8 text: in these the declaration is not readable
    try:
        # The parser by itself knows few encodings, not those of Chinese or Japanese tools.
        text = content.decode(declared[1].decode()) if declared else decode(content)
        if not (declaration := DECLARATION.search(text)):
            return ET.fromstring(text.lstrip())
    except (ET.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: not well-formed XML ({one_line(error)})") from error
    raise ValueError(
        f"{file}: {declaration[0]} is refused, since it can read other files or grow to any size; "
        "write the text itself"
    )


def _size(root, xml: Path) -> tuple[int, int] | None:
    """Read (width, height) of <size>; None if missing or 0, as some tools write it."""
    size = root.find("size")
    if size is None or size.find("width") is None or size.find("height") is None:
        return None
    width, height = int(_number(size, "width", xml)), int(_number(size, "height", xml))
    return (width, height) if width > 0 and height > 0 else None


def _number(parent, tag: str, xml: Path) -> float:
    text = parent.findtext(tag)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{xml}: <{tag}> in <{parent.tag}> must be a finite number, got {one_line(repr(text))}"
        )
    return value
