"""FORMAT csv: one table with a row for each box: file, x0, y0, x1, y1, class."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from detectron2.structures import BoxMode

from ..utils.pixels import image_size
from ..utils.text import one_line
from .annotation_file import AnnotationFile
from .checks import (
    AnnotationReport,
    class_indices,
    existing,
    named_path,
    read_split,
    read_text,
    replace_metadata,
    unknown_class,
)
from .images import is_image, visible_files

# Names of the columns in a header, in any case.
FILE = ("file", "filename", "file_name", "image", "image_path", "path")
CORNERS = (
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
)
CLASS = ("class", "label", "name", "class_name")


class Row(NamedTuple):
    """A row of the table, with its place in it; `box` is None for an image without objects."""

    here: str
    file: str
    box: tuple[float, float, float, float] | None
    label: str


@dataclass(frozen=True)
class CSVFormat(AnnotationFile):
    """The fields of FORMAT csv (see `AnnotationFile`); `load` reads the table.

    Its columns are file, x0, y0, x1, y1, class, separated by commas, semicolons or tabs. With a
    header they may have any order, further columns, and names that other tools write (filename,
    xmin, label, ...). Coordinates are edges in pixels from the top left corner of the image. A row
    with nothing but a file is an image without objects. `classes` empty: all names of the table,
    sorted.

    Args:
        split: path, under `root`, of a text file of images, one per line as in the table, or of a
            folder of images. Images without a row have no object; rows of other images are left
            out. Empty: the images of the table.
    """

    split: str = ""

    missing = "FORMAT csv needs ANNOTATIONS, the path of its table"

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format; image_id is the file as in the table.

        Sets `thing_classes` in the metadata of `name`.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        file = existing(self.root / self.annotations, "ANNOTATIONS")
        folder = existing(self.root / self.images, "IMAGES", "folder")
        rows = {}
        for row in read_table(file):
            rows.setdefault(row.file, []).append(row)
        names = {row.label for of_image in rows.values() for row in of_image if row.box}
        indices = class_indices(self.classes or sorted(names))
        report = report or AnnotationReport()
        dicts = []
        for image, listed_in in self._images(rows, folder):
            with report.image():
                path = existing(named_path(folder, image, "IMAGES", listed_in), listed_in)
                dicts.append(_record(path, image, rows.get(image, ()), indices, report))
        report.log(name)
        replace_metadata(name, thing_classes=list(indices))
        return dicts

    def _images(self, rows: dict, folder: Path) -> list[tuple[str, str]]:
        """List (image, where it is listed) for each image of the split, in order."""
        split = self.root / self.split
        if not self.split:
            return [(image, f"IMAGES and {of_image[0].here}") for image, of_image in rows.items()]
        if not split.is_dir():
            return read_split(existing(split, "SPLIT"), "with")
        if not split.is_relative_to(folder):
            raise ValueError(f"{split}: must lie in IMAGES {folder}, from SPLIT")
        found = [path for path in visible_files(split) if is_image(path)]
        if not found:
            raise ValueError(f"{split}: holds no image, from SPLIT")
        return [(path.relative_to(folder).as_posix(), "SPLIT") for path in found]


def _record(path: Path, image: str, rows, indices, report: AnnotationReport) -> dict:
    width, height = image_size(path)
    annotations = []
    for row in rows:
        if not row.box:
            continue
        if row.label not in indices:
            raise unknown_class(row.here, row.label, indices)
        if box := report.clip(row.box, width, height, path):
            annotations.append(
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": indices[row.label],
                    "iscrowd": 0,
                }
            )
    return {
        "file_name": str(path),
        "image_id": image,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


def read_table(file: Path) -> list[Row]:
    """Read the rows of a table.

    Raises:
        ValueError: the file is not such a table; the message names the line.
    """
    text = read_text(file)
    delimiter = max(",;\t", key=text.strip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns, rows = None, []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            is_excels = reader.line_num == 1 and cells[:1] and cells[0].lower().startswith("sep=")
            if is_excels or not any(cells):  # Excel writes sep=; to tell the separator
                continue
            if columns is None:
                columns = _columns(cells, file)
                width = len(cells) if columns else 6
                if columns:
                    continue
                columns = range(6)
            if len(cells) != width and any(cells[1:]):
                raise ValueError(
                    f"{file}: line {reader.line_num} has {len(cells)} columns, expected {width}; "
                    "quote a name that contains the separator"
                )
            rows.append(_row(cells, columns, f"{file}: line {reader.line_num}"))
    except csv.Error as error:
        raise ValueError(f"{file}: line {reader.line_num} is no row of a table ({error})") from None
    if not rows:
        raise ValueError(f"{file}: holds no row")
    return rows


def _columns(cells, file: Path) -> list[int] | None:
    """Indices of file, x0, y0, x1, y1, class in a header; None if the row is not a header."""
    if all(_is_number(cell) or not cell for cell in cells[1:5]):
        return None
    header = [cell.lower() for cell in cells]
    corners = next((names for names in CORNERS if set(names) <= set(header)), ())
    name, label = (next((n for n in names if n in header), None) for names in (FILE, CLASS))
    if not (corners and name and label):
        raise ValueError(
            f"{file}: line 1 is neither a box nor a header that names the columns; expected file, "
            f"x0, y0, x1, y1, class (or filename, xmin, ymin, xmax, ymax, label), got "
            f"{one_line(', '.join(cells))}"
        )
    return [header.index(column) for column in (name, *corners, label)]


def _row(cells, columns, here: str) -> Row:
    cells = cells + [""] * (1 + max(columns) - len(cells))
    image, *corners, label = (cells[i] for i in columns)
    image = image.replace("\\", "/").removeprefix("./")
    if not image:
        raise ValueError(f"{here} names no file")
    if not any(corners) and not label:
        return Row(here, image, None, "")
    if not all(map(_is_number, corners)):
        raise ValueError(
            f"{here} needs finite numbers as x0, y0, x1, y1, got "
            f"{one_line(', '.join(map(repr, corners)))}"
        )
    if not label:
        raise ValueError(f"{here} names no class")
    return Row(here, image, tuple(map(float, corners)), label)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
