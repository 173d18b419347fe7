"""Detectron2's DatasetMapper for images and masks of any kind, whose errors name the file."""

import copy

import numpy as np
import torch
from detectron2 import data
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data.transforms import AugInput

from ..utils.pixels import read_image
from .augmentations import for_any_aspect
from .masks import read_mask


class BrokenImageError(OSError):
    """An image file, `path`, that is missing, truncated or otherwise cannot be decoded."""

    path = ""


class DatasetMapper(data.DatasetMapper):
    """`detectron2.data.DatasetMapper(cfg, is_train)` with these differences.

    * Pixels are read by `utils.pixels.read_image`, so that 16 bits are scaled, not clipped. As
      Detectron2 advises, `__call__` is written anew for that, from the same functions.
    * Errors name the file that cannot be decoded.
    * Masks of semantic segmentation ("sem_seg_file_name") keep the indices of a palette, which
      Detectron2 takes for colours and converts to grey.
    * An image keeps at least one pixel on each side, however thin it is.

    Args:
        output_size: the size of semantic segmentation's predictions at test time: "image", or
            "input", the size the image was resized to, which "height" and "width" then hold.
        kwargs: see `detectron2.data.DatasetMapper`.
    """

    @configurable
    def __init__(self, is_train: bool, *, augmentations, output_size: str = "image", **kwargs):
        super().__init__(is_train, augmentations=for_any_aspect(augmentations), **kwargs)
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
        record = copy.deepcopy(dataset_dict)
        image = _read(read_image, record["file_name"], self.image_format)
        detection_utils.check_image_size(record, image)
        mapped = AugInput(image)
        if "sem_seg_file_name" in record:
            mapped.sem_seg = _read(read_mask, record["sem_seg_file_name"])
        transforms = self.augmentations(mapped)
        size = mapped.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(mapped.image.transpose(2, 0, 1)))
        if mapped.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(mapped.sem_seg.astype(np.int64))
        if self.output_size == "input" and "annotations" not in record:
            record["height"], record["width"] = size
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                record, size, transforms, proposal_topk=self.proposal_topk
            )
        annotations = record.pop("annotations", None)
        if self.is_train and annotations is not None:
            record["instances"] = self._instances(annotations, transforms, size)
        return record

    def _instances(self, annotations: list[dict], transforms, size):
        """The Instances of all annotations but crowds, moved into the image of (height, width)."""
        unused = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        unused = {key for key, used in unused.items() if not used}
        moved = [
            detection_utils.transform_instance_annotations(
                {key: value for key, value in annotation.items() if key not in unused},
                transforms,
                size,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for annotation in annotations
            if not annotation.get("iscrowd", 0)
        ]
        instances = detection_utils.annotations_to_instances(
            moved, size, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes and moved:  # a crop may leave less of an object than of its box
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return detection_utils.filter_empty_instances(instances)


def _read(reader, path: str, *args) -> np.ndarray:
    try:
        return reader(path, *args)
    except OSError as error:
        broken = BrokenImageError(
            f"{error}. Restore the file, take it out of the data set, or train without it: "
            "INPUT.SKIP_BROKEN_IMAGES True"
        )
        broken.path = path
        raise broken from error
