"""Base of FORMAT coco and csv: one file holds the annotations of all images."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class AnnotationFile:
    """The fields of a format whose annotations are one file; a subclass's `load` reads it.

    Args:
        root: folder of the data set.
        images: folder under `root` at which the image names in the file start.
        annotations: path of the file under `root`.
        classes: names in the order of their indices; the subclass says what empty means.

    Raises:
        ValueError: `annotations` is empty.
    """

    root: Path = Path()
    images: str = ""
    annotations: str = ""
    classes: tuple[str, ...] = ()

    missing: ClassVar[str]  # the message when `annotations` is empty

    def __post_init__(self):
        if not self.annotations:
            raise ValueError(self.missing)

    @property
    def source(self) -> str:
        """Path of the annotations."""
        return str(self.root / self.annotations)

    def metadata(self) -> dict:
        known = {"thing_classes": list(self.classes)} if self.classes else {}
        return {**known, "image_root": str(self.root / self.images)}
