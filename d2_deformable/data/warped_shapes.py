"""FORMAT warped_shapes: the embedded benchmark, generated at first use and kept on disk."""

import json
import logging
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image

from . import shapes
from .checks import AnnotationReport
from .coco import COCOFormat
from .masks import MaskFormat

VERSION = 1  # goes up whenever the pictures change, so that stale ones are never used
SPLITS = {"train": 0, "val": 1}
TASKS = ("detection", "segmentation")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarpedShapesFormat:
    """The fields of FORMAT warped_shapes; `load` generates what is missing.

    Eight classes of shapes under the variation the paper is about: rotation, scale, aspect and
    non-rigid warps, on textured backgrounds, with boxes and masks (run-length codes: mask heads
    need INPUT.MASK_FORMAT bitmask). Colour and texture are independent of the class.

    Args:
        root: folder that holds all generated sets.
        split: train or val; they share no picture.
        num_images: a larger number extends the set, and the first images stay the same.
        image_size: side of the square images in pixels, at least 32.
        seed: seed of the pictures, not negative.
        task: detection, or segmentation: an image of class indices for each picture, 0 being the
            background and k + 1 the shape of index k.
        variation: warped; wide, with sizes over a factor of 10 instead of 3.5; or rigid, with one
            size and no rotation, aspect or warp.

    Raises:
        ValueError: a value is out of range.
    """

    root: Path = Path("warped_shapes")
    split: str = "train"
    num_images: int = 1000
    image_size: int = 160
    seed: int = 0
    task: str = "detection"
    variation: str = "warped"

    def __post_init__(self):
        choices = {"split": SPLITS, "task": TASKS, "variation": shapes.VARIATIONS}
        for field, known in choices.items():
            if (value := getattr(self, field)) not in known:
                raise ValueError(
                    f"{field.upper()} must be one of {', '.join(known)}; got {value!r}"
                )
        for field, least in (("num_images", 1), ("image_size", 32), ("seed", 0)):
            if getattr(self, field) < least:
                raise ValueError(
                    f"{field.upper()} must be at least {least}; got {getattr(self, field)}"
                )

    @property
    def folder(self) -> Path:
        """Folder of this set; its name states everything that the content depends on."""
        parts = [f"v{VERSION}", self.split, self.num_images, f"{self.image_size}px"]
        parts += [f"seed{self.seed}", *([self.variation] * (self.variation != "warped"))]
        return self.root / "-".join(map(str, parts))

    @property
    def source(self) -> str:
        """Path of the annotations."""
        return str(self.folder / "instances.json")

    def metadata(self) -> dict:
        if self.task == "segmentation":
            return self._masks.metadata()
        return {"thing_classes": list(shapes.NAMES), "image_root": str(self.folder)}

    @property
    def _masks(self) -> MaskFormat:
        return MaskFormat(self.folder, images="", classes=("background", *shapes.NAMES))

    def load(self, name: str, report: AnnotationReport | None = None) -> list[dict]:
        """Load the data set in Detectron2's standard format.

        Raises:
            OSError: the folder cannot be written.
        """
        if not (self.folder / "instances.json").is_file():
            self._generate()
        if self.task == "detection":
            return COCOFormat(self.folder, annotations="instances.json").load(name, report)
        masks = self.folder / self._masks.masks
        if not masks.is_dir():
            self._write_atomically(masks, masks, self._write_masks)
        return self._masks.load(name, report)

    def draw(self, index: int):
        """Draw picture `index` of this seed and split, see `shapes.draw`."""
        rng = np.random.Generator(np.random.PCG64([self.seed, SPLITS[self.split], index]))
        return shapes.draw(rng, self.image_size, shapes.VARIATIONS[self.variation])

    def _generate(self) -> None:
        logger.info("Generating %d images of warped_shapes in %s", self.num_images, self.folder)
        start = time.perf_counter()
        self._write_atomically(self.folder, self.folder / "instances.json", self._write)
        logger.info("Generated the images in %.0f s", time.perf_counter() - start)

    def _write_atomically(self, folder: Path, proof: Path, write) -> None:
        """Write into a temporary folder, then rename it, so that readers see all of it or nothing.

        If several processes do so, the first one wins. The path `proof` exists once one is done.
        """
        scratch = self.root / f".{self.folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            scratch.mkdir(parents=True)
            write(scratch)
            os.rename(scratch, folder)
        except OSError as error:
            if not proof.exists():  # no other process was faster
                raise OSError(
                    f"{folder}: cannot generate warped_shapes here ({error}). Remove the "
                    "folder if it exists, or give another ROOT in DATASETS.CUSTOM"
                ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        images, annotations = [], []
        for index in range(self.num_images):
            pixels, objects = self.draw(index)
            file_name = f"{index:06d}.png"
            # Level 1: three times as fast, hardly larger on noisy pictures.
            Image.fromarray(pixels).save(folder / file_name, compress_level=1)
            side = self.image_size
            images.append({"id": index, "file_name": file_name, "width": side, "height": side})
            for label, mask in objects:
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": index, **_annotation(label, mask)}
                )
        categories = [{"id": i, "name": label} for i, label in enumerate(shapes.NAMES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(content))

    def _write_masks(self, folder: Path) -> None:
        """Write <stem of the picture>.png for each picture, drawn from instances.json.

        Its masks never overlap, so sets generated for detection also serve segmentation.
        """
        content = json.loads((self.folder / "instances.json").read_text())
        labels = {
            image["id"]: np.zeros((image["height"], image["width"]), np.uint8)
            for image in content["images"]
        }
        for annotation in content["annotations"]:
            visible = pycocotools.mask.decode(annotation["segmentation"]).astype(bool)
            labels[annotation["image_id"]][visible] = annotation["category_id"]
        for image in content["images"]:
            Image.fromarray(labels[image["id"]]).save(folder / image["file_name"])


def _annotation(label: int, mask: np.ndarray) -> dict:
    """COCO's fields of one mask (H, W) bool; its box is (x0, y0, width, height)."""
    code = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": label + 1,
        "bbox": pycocotools.mask.toBbox(code).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
        "iscrowd": 0,
    }
