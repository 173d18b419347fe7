"""Detectron2's DatasetMapper that keeps the class indices of masks and names unreadable files."""

import numpy as np
import torch
from detectron2 import data
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data.transforms import AugInput

from .masks import read_mask


class BrokenImageError(OSError):
    """An image file, `path`, that is missing, truncated or otherwise cannot be decoded."""

    path = ""


class DatasetMapper(data.DatasetMapper):
    """`detectron2.data.DatasetMapper(cfg, is_train)` with two differences.

    * Errors name the file that cannot be decoded.
    * Masks of semantic segmentation ("sem_seg_file_name" in a record without "annotations") keep
      the indices of a palette, which Detectron2 takes for colours and converts to grey.

    Args:
        output_size: the size of semantic segmentation's predictions at test time: "image", or
            "input", the size the image was resized to, which "height" and "width" then hold.
        kwargs: see `detectron2.data.DatasetMapper`.
    """

    @configurable
    def __init__(self, is_train: bool, *, output_size: str = "image", **kwargs):
        super().__init__(is_train, **kwargs)
        self.output_size = output_size

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        resolution = cfg.TEST.get("SEM_SEG_RESOLUTION", "full")
        output_size = "image" if is_train or resolution == "full" else "input"
        return {**super().from_config(cfg, is_train), "output_size": output_size}

    def __call__(self, dataset_dict: dict) -> dict:
        """Map a record as Detectron2 does.

        Raises:
            BrokenImageError: a missing, truncated or otherwise undecodable image.
            ValueError: a mask with colours.
        """
        try:
            if "sem_seg_file_name" in dataset_dict and "annotations" not in dataset_dict:
                return self._map_mask(dataset_dict)
            return super().__call__(dataset_dict)
        except Exception:
            # Pillow raises many types of errors, without the path. Reading again tells a broken
            # file from an error in annotations or augmentations, which is raised unchanged.
            for key in ("file_name", "sem_seg_file_name"):
                if key in dataset_dict:
                    _check_readable(dataset_dict[key])
            raise

    def _map_mask(self, dataset_dict: dict) -> dict:
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        mapped = AugInput(image, sem_seg=read_mask(dataset_dict["sem_seg_file_name"]))
        self.augmentations(mapped)
        image = np.ascontiguousarray(mapped.image.transpose(2, 0, 1))
        record = {
            **dataset_dict,
            "image": torch.as_tensor(image),
            "sem_seg": torch.as_tensor(mapped.sem_seg.astype(np.int64)),
        }
        if self.output_size == "input":
            record["height"], record["width"] = image.shape[1:]
        return record


def _check_readable(path: str) -> None:
    try:
        detection_utils.read_image(path)
    except Exception as error:
        broken = BrokenImageError(
            f"{path}: this image cannot be read ({error}). Restore the file, take it out of the "
            "data set, or train without it: INPUT.SKIP_BROKEN_IMAGES True"
        )
        broken.path = path
        raise broken from error
