"""User data sets declared in YAML: registration, checks, and the mapper."""

from .. import needs_detectron2
from .broken import SkipBrokenImages
from .coco import COCOFormat
from .custom import check_datasets, register_custom_datasets
from .difficult import load_flagged, without_difficult
from .loading import load_records, load_training_records
from .mapper import DatasetMapper
from .masks import MaskFormat, read_mask
from .proposals import check_proposals, screen_proposals
from .table import CSVFormat
from .train_loader import TrainLoader, build_train_loader
from .voc import VOCFormat
from .warped_shapes import WarpedShapesFormat
from .yolo import YOLOFormat

__all__ = [
    "COCOFormat",
    "CSVFormat",
    "DatasetMapper",
    "MaskFormat",
    "SkipBrokenImages",
    "TrainLoader",
    "VOCFormat",
    "WarpedShapesFormat",
    "YOLOFormat",
    "build_train_loader",
    "check_datasets",
    "check_proposals",
    "load_flagged",
    "load_records",
    "load_training_records",
    "read_mask",
    "register_custom_datasets",
    "screen_proposals",
    "without_difficult",
]
