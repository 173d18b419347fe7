"""Images of registered data sets: their records, inputs and class names."""

import logging

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..modeling.meta_arch.predicates import is_segmentor
from ..utils.pixels import read_image
from .mapper import DatasetMapper

logger = logging.getLogger(__name__)


def dataset_records(names, max_images: int = 0) -> list[dict]:
    """Records of registered data sets: `max_images` of them, evenly spaced, or all for 0.

    Raises:
        ValueError: there are none, or no such data set.
    """
    for name in names:
        if name not in DatasetCatalog:
            raise ValueError(
                f"there is no data set {name}: name one of the config's DATASETS.CUSTOM or of "
                "Detectron2's own"
            )
    records = [record for name in names for record in DatasetCatalog.get(name)]
    if not records:
        raise ValueError(
            f"no image in {', '.join(names) or 'DATASETS.TEST, which is empty'}: name a data set"
        )
    n = len(records)
    if not 0 < max_images < n:
        return records
    return [records[n * (2 * i + 1) // (2 * max_images)] for i in range(max_images)]


def read_inputs(cfg, record: dict):
    """Read the image of a record, RGB (H, W, 3) uint8, and the input of a model of `cfg`.

    Raises:
        OSError: the image cannot be read.
    """
    inputs = DatasetMapper(cfg, False)(record)
    image = read_image(record["file_name"], "RGB")
    inputs["height"], inputs["width"] = image.shape[:2]
    return image, inputs


def class_names(cfg, dataset_name: str | None = None) -> list[str]:
    """Class names of the network: those of the data set, "class i" where it has none."""
    segments = is_segmentor(cfg)
    field = "stuff_classes" if segments else "thing_classes"
    names = []
    if dataset_name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(dataset_name)
        try:
            if not hasattr(metadata, field):
                DatasetCatalog.get(dataset_name)  # some formats know their classes only then
        except OSError as error:
            logger.info("Continuing without class names: %s", error)
        names = getattr(metadata, field, None) or []
    n = (cfg.MODEL.SEM_SEG_HEAD if segments else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    return [*names, *(f"class {i}" for i in range(len(names), n))]
