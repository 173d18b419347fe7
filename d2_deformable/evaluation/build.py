"""Choose the evaluators of a data set: COCO's and VOC's metrics of boxes, mIoU of class masks."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluators

from ..compat import has_compiled_d2
from .coco import CountingCOCOEvaluator
from .proposals import BoxRecallEvaluator, ProposalWriter
from .sem_seg import SemSegEvaluator
from .voc import VOCEvaluator

# The metadata "evaluator_type" of data sets for semantic segmentation: ours, Detectron2's.
SEM_SEG = ("sem_seg", "cityscapes_sem_seg")


def build_evaluators(cfg, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluators:
    """Build the `dataset_evaluators` that cfg asks for.

    Args:
        output_dir: default OUTPUT_DIR/inference, as in Detectron2.
    """
    return dataset_evaluators(
        dataset_name,
        output_dir=output_dir or os.path.join(cfg.OUTPUT_DIR, "inference"),
        masks=cfg.MODEL.MASK_ON,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        proposals=cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork",
        voc_metric=cfg.TEST.VOC_METRIC,
        sem_seg_resolution=cfg.TEST.SEM_SEG_RESOLUTION,
        max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )


def dataset_evaluators(
    dataset_name: str,
    *,
    output_dir: str,
    masks: bool = False,
    keypoints: bool = False,
    proposals: bool = False,
    voc_metric: str = "area",
    sem_seg_resolution: str = "full",
    max_dets_per_image: int = 100,
    kpt_oks_sigmas: Sequence[float] = (),
) -> DatasetEvaluators:
    """Build the evaluators of a data set.

    * Detection: COCO metrics under "bbox" (and "segm" with `masks`, "keypoints" with `keypoints`),
      VOC metrics under "voc".
      COCO metrics ignore the `difficult` flag: such objects count. Beside each stand the numbers
      of images, detections, objects and ignored objects.
    * Semantic segmentation: mIoU under "sem_seg".
    * Proposals: COCO's average recall under "box_proposals", as in Detectron2, and their file.

    Args:
        dataset_name: name of a registered data set.
        output_dir: where predictions are written.
        masks, keypoints: whether the model predicts them (MODEL.MASK_ON, MODEL.KEYPOINT_ON).
        proposals: whether it predicts only proposals (a ProposalNetwork).
        voc_metric, sem_seg_resolution: TEST.VOC_METRIC, TEST.SEM_SEG_RESOLUTION.
        max_dets_per_image: TEST.DETECTIONS_PER_IMAGE. Above 100, COCO's limit, COCO metrics count
            that many detections of an image and class; see `CountingCOCOEvaluator`.
        kpt_oks_sigmas: TEST.KEYPOINT_OKS_SIGMAS; empty takes COCO's, for its 17 keypoints.
    """
    if MetadataCatalog.get(dataset_name).get("evaluator_type") in SEM_SEG:
        return DatasetEvaluators([SemSegEvaluator(dataset_name, output_dir, sem_seg_resolution)])
    tasks = ("bbox", *["segm"] * masks, *["keypoints"] * keypoints)
    options = {"output_dir": output_dir, "use_fast_impl": has_compiled_d2()}
    with _as_coco_json(dataset_name):
        if proposals:
            coco = BoxRecallEvaluator(dataset_name, tasks, **options)
        else:
            coco = CountingCOCOEvaluator(
                dataset_name,
                tasks,
                max_dets_per_image=max_dets_per_image,
                kpt_oks_sigmas=kpt_oks_sigmas,
                **options,
            )
    if proposals:
        file = os.path.join(output_dir, f"{dataset_name}_proposals.pkl")
        return DatasetEvaluators([coco, ProposalWriter(dataset_name, file)])
    return DatasetEvaluators([coco, VOCEvaluator(dataset_name, voc_metric, output_dir)])


@contextmanager
def _as_coco_json(dataset_name: str):
    """Point the metadata of a data set without a JSON file to a fresh conversion, for the block.

    COCOEvaluator reads it when it is built. By itself it would keep the conversion in its output
    folder, and in Detectron2 0.5 it would always reuse that of an earlier run on this data set.
    """
    meta = MetadataCatalog.get(dataset_name)
    if meta.get("json_file"):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        meta.json_file = os.path.join(folder, f"{dataset_name}.json")
        try:
            convert_to_coco_json(dataset_name, meta.json_file)
            yield
        finally:
            del meta.json_file
