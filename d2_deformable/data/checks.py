"""Checks shared by all data set formats: paths, and boxes against their image."""

import json
import logging
import os
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import log_first_n

from ..utils.paths import inside
from ..utils.text import count, one_line

ROUNDING = 0.02  # pixels: boxes written with two decimals overhang their image by this much


def datasets_root() -> Path:
    """Folder that a relative ROOT starts at: Detectron2's $DETECTRON2_DATASETS or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def existing(path: Path, field: str, kind: str = "file") -> Path:
    """Return `path` after checking that it exists.

    Args:
        path: taken from a field of DATASETS.CUSTOM.
        field: the name of that field, for the message.
        kind: "file" or "folder".

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    # `Path.is_file` raises on names of more than 255 bytes.
    if not (os.path.isdir(path) if kind == "folder" else os.path.isfile(path)):
        raise FileNotFoundError(
            f"{one_line(path, 1000)}: no such {kind}, from {field}. Relative paths start at ROOT, "
            f"and a relative ROOT at $DETECTRON2_DATASETS, now {datasets_root()}"
        )
    return path


def named_path(folder: Path, name: str, field: str, where: str) -> Path:
    """Join a folder and the path of a file that data of the user name.

    Args:
        folder: that a field of DATASETS.CUSTOM names.
        field: the name of that field, for the message.
        where: the place that names the file, for the message.

    Raises:
        ValueError: the path leads out of the folder.
    """
    return inside(folder, name, where, f"Correct it, or set {field} to a folder of all such files")


def class_indices(classes) -> dict[str, int]:
    """{name: index of the class}."""
    return {name: index for index, name in enumerate(classes)}


def read_text(file: Path) -> str:
    """Read a text file in UTF-8 or UTF-16, with or without a byte order mark; lines end in \\n.

    Raises:
        ValueError: the file has another encoding.
    """
    try:
        return decode(file.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not a text file in UTF-8 or UTF-16 ({error}). Save it in UTF-8"
        ) from error


def decode(content: bytes) -> str:
    """Decode text in UTF-8, UTF-16 or UTF-32, and remove its byte order mark.

    Raises:
        UnicodeDecodeError: the text has another encoding.
    """
    return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")


def read_json(file: Path):
    """Read a JSON file in an encoding of `decode`.

    Raises:
        ValueError: the file is not JSON, or has another encoding.
    """
    try:
        return json.loads(decode(file.read_bytes()))
    except RecursionError:
        raise ValueError(
            f"{file}: not a json file of objects and lists: nested too deeply"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: not a json file ({error})") from error


def read_names(file: Path) -> tuple[str, ...]:
    """Read a text file of class names, one for each line; empty lines are left out.

    Raises:
        ValueError: see `read_text`.
    """
    return tuple(line.strip() for line in read_text(file).splitlines() if line.strip())


def read_split(file: Path, suffix: str = "without") -> list[tuple[str, str]]:
    """Read a text file of image names: (image, where it is listed) for each line, in order.

    Args:
        suffix: "with" or "without", the names' form, for messages.

    Raises:
        ValueError: an image is listed twice, or none is.
    """
    lines = read_text(file).splitlines()
    stems = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if line in stems:
            raise ValueError(f"{file}: line {number} lists {one_line(line)} a second time")
        if line:
            stems[line] = f"line {number} of {file} (one image per line, {suffix} suffix)"
    if not stems:
        raise ValueError(f"{file}: this split lists no image")
    return list(stems.items())


def replace_metadata(name: str, **values) -> None:
    """Set metadata of a data set, in place of values of an earlier loading, which may differ.

    Args:
        values: None removes a value.
    """
    meta = MetadataCatalog.get(name)
    for key, value in values.items():
        meta.__dict__.pop(key, None)  # Detectron2 refuses to set another value
        if value is not None:
            meta.set(**{key: value})


def unknown_class(where: str, label: str, classes) -> ValueError:
    """An error about an object whose class is not among CLASSES."""
    return ValueError(
        f"{where} has the class {one_line(label)!r}, unknown to CLASSES "
        f"{one_line(', '.join(classes), 1000)}. Add it to "
        "CLASSES, or remove its objects from the annotations to train on fewer classes"
    )


class AnnotationReport:
    """Counts the annotations that a loader changed or flagged.

    Logs one line for each kind, with the total and the first files.

    Args:
        collect: for whoever checks data: images with an error are left out and the messages kept in
            `errors`, instead of raising the first, and nothing is logged.
    """

    # As `count` takes them.
    MEANING = {
        "dropped": "box without area inside the image, dropped",
        "clipped": "box reaching beyond the image, clipped to it",
        "difficult": "object marked difficult (VOC AP ignores them, and training does with "
        "INPUT.DROP_DIFFICULT)",
        "unlabelled": "image without a label file, taken as one without objects",
        "crowd": "object marked iscrowd, not trained on",
        "maskless": "object of which only the box stays, since its mask is degenerate (fewer than "
        "3 points, half a point, an outline of more than a million pixels, or a code that does not "
        "cover exactly the image) or neither polygons nor a code",
        "repeated": "id used by several annotations, which has no effect",
    }

    def __init__(self, collect: bool = False):
        self.files = {kind: [] for kind in self.MEANING}
        self.collect = collect
        self.errors = []

    @contextmanager
    def image(self):
        """Context that loads one image."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not self.collect:
                raise
            self.errors.append(str(error))

    def add(self, kind: str, file) -> None:
        self.files[kind].append(Path(file).name)

    def clip(self, box, width: int, height: int, file) -> list[float] | None:
        """Clip `box` to its image and count it; return None if nothing of it is left.

        Args:
            box: (x0, y0, x1, y1) in continuous pixels.
            file: the file to name.
        """
        limits = (width, height, width, height)
        inside = [min(max(v, 0.0), float(m)) for v, m in zip(box, limits, strict=True)]
        x0, y0, x1, y1 = inside
        if x1 <= x0 or y1 <= y0:
            self.add("dropped", file)
            return None
        if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > ROUNDING:
            self.add("clipped", file)
        return inside

    def log(self, name: str) -> None:
        """Warn about each kind that occurred, once per process however often a set is loaded."""
        for kind, files in self.files.items():
            if files and not self.collect:
                distinct = list(dict.fromkeys(files))
                more = f" and {count(len(distinct) - 5, 'other')}" if len(distinct) > 5 else ""
                found = count(len(files), self.MEANING[kind])
                log_first_n(
                    logging.WARNING,
                    f"{name}: {found}: {', '.join(distinct[:5])}{more}",
                    name=__name__,
                    key="message",
                )
