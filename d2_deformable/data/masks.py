"""FORMAT mask: an image of class indices beside each image, for semantic segmentation."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from detectron2.utils.logger import log_first_n

from ..utils.pixels import image_size, open_image
from .checks import AnnotationReport, existing, named_path, read_split
from .images import ImageFolder, in_any_case, stems

ONE_CHANNEL = ("L", "P", "1")  # Pillow's modes: grey, palette, black and white
# Pillow multiplies grey of fewer bits so that white is 255; masks hold indices, not brightness.
FACTORS = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class MaskFormat:
    """The fields of FORMAT mask; `load` reads the masks.

    Args:
        root: folder of the data set.
        images: folder of the images, of any suffix, under `root`.
        masks: folder of the masks under `root`: <stem of the image>.png, one channel of 8 bits,
            grey or palette, whose values are indices into `classes`, or `ignore`.
        split: path of a text file under `root`: one image per line, without suffix. Empty: every
            mask of `masks`.
        classes: names in the order of their indices.
        ignore: the value of pixels that count neither in training nor in evaluation.

    Raises:
        ValueError: `classes` is empty, or `ignore` is the index of a class.
    """

    root: Path = Path()
    images: str = "images"
    masks: str = "masks"
    split: str = ""
    classes: tuple[str, ...] = ()
    ignore: int = 255

    def __post_init__(self):
        if not self.classes:
            raise ValueError(
                "FORMAT mask needs CLASSES, as a list or a text file: the names of the indices "
                "0, 1, ... in the masks"
            )
        if not len(self.classes) <= self.ignore <= 255:
            raise ValueError(
                f"IGNORE must lie above the indices of the {len(self.classes)} CLASSES and within "
                f"8 bits; got {self.ignore}"
            )

    @property
    def source(self) -> str:
        """Path of the annotations."""
        return str(self.root / self.masks)

    def metadata(self) -> dict:
        return {
            "stuff_classes": list(self.classes),
            "ignore_label": self.ignore,
            "image_root": str(self.root / self.images),
            "sem_seg_root": self.source,
            "evaluator_type": "sem_seg",
        }

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format; image_id is the line of the split.

        Raises:
            FileNotFoundError, ValueError: one sentence that names the file at fault.
        """
        masks = existing(self.root / self.masks, "MASKS", "folder")
        images = ImageFolder(existing(self.root / self.images, "IMAGES", "folder"))
        found = set()
        report = report or AnnotationReport()
        dicts = []
        for stem, listed_in in self._stems(masks):
            with report.image():
                mask = named_path(masks, f"{stem}.png", "MASKS", listed_in)
                mask = existing(in_any_case(mask), listed_in)
                dicts.append(self._load_image(stem, mask, images, found))
        absent = [label for k, label in enumerate(self.classes) if k not in found]
        if dicts and len(absent) == len(self.classes):
            raise ValueError(f"{masks}: every pixel of the masks of {name} is IGNORE {self.ignore}")
        if absent and not report.collect:
            log_first_n(
                logging.WARNING,
                f"{name}: no pixel is {', '.join(absent)}, according to {masks}",
                name=__name__,
                key="message",
            )
        return dicts

    def _stems(self, masks: Path) -> list[tuple[str, str]]:
        """List (image, where it is listed) for each image of the split, in order."""
        if self.split:
            return read_split(existing(self.root / self.split, "SPLIT"))
        found = stems(masks, ".png")
        if not found:
            raise ValueError(f"{masks}: holds no .png file (SPLIT is empty: all of them)")
        return [(stem, "MASKS") for stem in found]

    def _load_image(self, stem: str, mask: Path, images: ImageFolder, found: set[int]) -> dict:
        """Build the record of one image, and add the values of its mask to `found`."""
        image = images.find(stem, None, mask)
        width, height = image_size(image)
        state = mask.stat()
        state = state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        (mask_height, mask_width), values = _contents(mask, state)
        if (mask_height, mask_width) != (height, width):
            raise ValueError(
                f"{mask}: is {mask_width} x {mask_height} pixels, but its image {image} is "
                f"{width} x {height}"
            )
        wrong = [v for v in values if v >= len(self.classes) and v != self.ignore]
        if wrong:
            raise ValueError(
                f"{mask}: holds {', '.join(map(str, wrong[:5]))}, neither indices of the "
                f"{len(self.classes)} CLASSES nor IGNORE {self.ignore}"
            )
        found.update(values)
        return {
            "file_name": str(image),
            "sem_seg_file_name": str(mask),
            "image_id": stem,
            "width": width,
            "height": height,
        }


@cache  # a data set is loaded several times: to check it, to train and to evaluate
def _contents(mask: Path, state: tuple) -> tuple[tuple[int, int], list[int]]:
    """Read ((height, width), values in ascending order) of a file, whose `state` tells changes."""
    labels = read_mask(mask)
    return labels.shape, np.flatnonzero(np.bincount(labels.ravel())).tolist()


def read_mask(file) -> np.ndarray:
    """Read the class indices (H, W) uint8 of a grey or palette image.

    Raises:
        OSError: the file is missing or damaged, or no image.
        ValueError: it is a colour image.
    """
    try:
        with open_image(file) as image:
            factor = FACTORS.get(image.tile[0][3] if image.tile else None, 1)
            mode, labels = image.mode, np.array(image) // factor
    except Exception as error:  # Pillow's readers raise many types on broken files
        raise OSError(f"{file}: not a readable mask ({error})") from error
    if mode not in ONE_CHANNEL:
        raise ValueError(
            f"{file}: a mask holds class indices in one channel of up to 8 bits (Pillow's modes "
            f"{', '.join(ONE_CHANNEL)}), but this one is {mode}: convert colours to indices"
        )
    return labels.astype(np.uint8)
