"""Detectron2's DatasetMapper, naming the image file that cannot be read."""

from detectron2 import data
from detectron2.data import detection_utils


class DatasetMapper(data.DatasetMapper):
    """`detectron2.data.DatasetMapper(cfg, is_train)` whose errors name undecodable files."""

    def __call__(self, dataset_dict: dict) -> dict:
        """As Detectron2's.

        Raises:
            OSError: a missing, truncated or otherwise undecodable image.
        """
        try:
            return super().__call__(dataset_dict)
        except Exception:
            # Pillow raises many types without the path. Reading again tells a broken file from
            # an error of the annotations or the augmentations, which stays as it is.
            for key in ("file_name", "sem_seg_file_name"):
                if key in dataset_dict:
                    _check_readable(dataset_dict[key])
            raise


def _check_readable(path: str) -> None:
    try:
        detection_utils.read_image(path)
    except Exception as error:
        raise OSError(
            f"{path}: this image cannot be read ({error}). Restore the file, or take it out of "
            "the data set"
        ) from error
