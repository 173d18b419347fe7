"""Objects flagged `difficult`: VOC's protocol neither trains on them nor counts them."""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations

from .voc import VOCFormat

logger = logging.getLogger(__name__)


def load_flagged(name: str) -> list[dict]:
    """Load a data set in Detectron2's standard format, with "difficult" in its annotations.

    Detectron2's own voc_* are read again from their XML, since its loader drops the flag.
    """
    meta = MetadataCatalog.get(name)
    if _drops_the_flag(name):
        form = VOCFormat(Path(meta.dirname), split=meta.split, classes=tuple(meta.thing_classes))
        return form.load(name)
    return DatasetCatalog.get(name)


def _drops_the_flag(name: str) -> bool:
    """Whether a data set is a voc_* of Detectron2, whose loader drops "difficult"."""
    return MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc"


def without_difficult(cfg) -> list[dict]:
    """Load DATASETS.TRAIN for `build_detection_train_loader`, without objects flagged difficult.

    See `load_easy`.
    """
    return load_easy(cfg.DATASETS.TRAIN, **training_filters(cfg))


def training_filters(cfg) -> dict:
    """Arguments with which Detectron2's train loader calls `get_detection_dataset_dicts`."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return {
        "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        "min_keypoints": keypoints if cfg.MODEL.KEYPOINT_ON else 0,
        "proposal_files": (cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None),
    }


def load_easy(
    names, *, filter_empty: bool = True, min_keypoints: int = 0, proposal_files=None
) -> list[dict]:
    """`detectron2.data.get_detection_dataset_dicts` without objects flagged difficult; with
    `filter_empty`, images left without objects are removed as Detectron2 does."""
    kept, dropped = [], 0
    for i, name in enumerate(names):
        dicts = get_detection_dataset_dicts(
            (name,),
            filter_empty=False,
            min_keypoints=min_keypoints,
            proposal_files=proposal_files[i : i + 1] if proposal_files else None,
        )
        flagged = load_flagged(name) if _drops_the_flag(name) else dicts
        flagged = {r["image_id"]: r.get("annotations", []) for r in flagged}
        for record in dicts:
            if "annotations" in record:
                objects = flagged[record["image_id"]]
                easy = [o for o in objects if not o.get("difficult")]
                dropped += len(objects) - len(easy)
                record = {**record, "annotations": easy}  # the loader may give the same dict again
            kept.append(record)
    logger.info("INPUT.DROP_DIFFICULT: left out %d objects marked difficult.", dropped)
    if filter_empty and "annotations" in kept[0]:
        kept = filter_images_with_only_crowd_annotations(kept)
    if not kept:
        raise ValueError(
            f"INPUT.DROP_DIFFICULT leaves no object in {', '.join(names)}: all are marked difficult"
        )
    return kept
