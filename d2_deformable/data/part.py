"""PART: a fixed division of one labelled folder into images to train on and images to test on."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.text import count
from .checks import AnnotationReport

PARTS = ("train", "val")
VAL_SHARE = 0.2


@dataclass(frozen=True)
class Part:
    """One part of a data set of any format, chosen by the images' names.

    The same images give the same parts on every machine. "val" is a fifth of the images with
    objects and a fifth of those without; "train" is the rest.

    Args:
        form: format object of the whole data set.
        part: train or val.
    """

    form: Any
    part: str

    def __post_init__(self):
        if self.part not in PARTS:
            raise ValueError(f"PART must be one of {', '.join(PARTS)}; got {self.part!r}")

    @property
    def root(self) -> Path:
        return self.form.root

    @property
    def source(self) -> str:
        return self.form.source

    def metadata(self) -> dict:
        return self.form.metadata()

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load this part, in the order of the whole data set.

        Raises:
            FileNotFoundError, ValueError: see the format; or there are too few images to divide.
        """
        dicts = self.form.load(name, report)
        with_objects = [bool(record.get("annotations", True)) for record in dicts]
        if sum(with_objects) < 2:
            raise ValueError(
                f"{self.source}: has {count(sum(with_objects), 'image with objects')}; PART "
                f"{self.part} needs 2 or more to divide"
            )
        val = set()
        for kind in (True, False):
            indices = [i for i, has_objects in enumerate(with_objects) if has_objects == kind]
            # Neighbours in a folder are often alike, so that the names' order must not count.
            indices.sort(key=lambda i: zlib.crc32(Path(dicts[i]["file_name"]).name.encode()))
            share = round(VAL_SHARE * len(indices))
            val.update(indices[: max(1, share) if kind else share])
        return [record for i, record in enumerate(dicts) if (i in val) == (self.part == "val")]
