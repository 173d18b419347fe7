"""Recall of an RPN's proposals, and their file for detectors with fixed proposals (sec. 4.1)."""

import pickle
from pathlib import Path

import torch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from ..compat import require_private
from ..utils.files import replacing
from .counts import report_counts

require_private(COCOEvaluator, "_eval_box_proposals")


class BoxRecallEvaluator(COCOEvaluator):
    """Detectron2's average recall of proposals, with the numbers that `report_counts` describes.

    Two things differ from Detectron2:

    - Image ids may be strings, as VOC's. pycocotools would read a string as the list of its letters
      and find no object, so that the recall is NaN.
    - Objects of an image without proposals are missed. Detectron2 leaves such an image out.
    """

    def _eval_box_proposals(self, predictions):
        # No box_proposals.pkl of Detectron2: ProposalWriter's file also names the data set.
        require_private(self, "_coco_api", "_metadata", "_output_dir", "_results")
        self._output_dir = None
        super()._eval_box_proposals(
            [
                {"image_id": [p["image_id"]], "proposals": _at_least_one(p["proposals"])}
                for p in predictions
            ]
        )
        seen = {p["image_id"] for p in predictions}
        annotations = self._coco_api.dataset.get("annotations", [])
        crowd = [bool(a["iscrowd"]) for a in annotations if a["image_id"] in seen]
        counts = report_counts(
            f"Recall of proposals on {self._metadata.name}",
            images=len(predictions),
            of_images=len(self._coco_api.getImgIds()),
            detections=sum(len(p["proposals"]) for p in predictions),
            objects=len(crowd) - sum(crowd),
            ignored=sum(crowd),
        )
        for results in self._results.values():
            results.update(counts)


def _at_least_one(proposals: Instances) -> Instances:
    """The proposals, or one without area, which overlaps nothing, if there are none."""
    if len(proposals):
        return proposals
    return Instances(
        proposals.image_size,
        proposal_boxes=Boxes(torch.zeros(1, 4)),
        objectness_logits=torch.zeros(1),
    )


class ProposalWriter(DatasetEvaluator):
    """Writes the proposals of a `ProposalNetwork` on a data set as a proposal file of Detectron2.

    Boxes are (x0, y0, x1, y1) in pixels of the original image, whatever the image was resized to.
    The file appears whole or not at all.

    Args:
        dataset_name: stored in the file, so that it is not mistaken for that of another data set.
        file: the .pkl to write; its folder is created.
    """

    def __init__(self, dataset_name: str, file):
        self._name, self._file = dataset_name, Path(file)
        self.reset()

    def reset(self):
        self._rows = []  # (image_id, boxes (R, 4), logits (R,)), float32

    def process(self, inputs, outputs):
        for x, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            boxes, logits = proposals.proposal_boxes.tensor, proposals.objectness_logits
            self._rows.append((x["image_id"], boxes.float().numpy(), logits.float().numpy()))

    def evaluate(self) -> dict:
        gathered = comm.gather(self._rows, dst=0)
        if not comm.is_main_process():
            return {}
        ids, boxes, logits = zip(*(row for rows in gathered for row in rows), strict=True)
        content = {
            "ids": list(ids),
            "boxes": list(boxes),
            "objectness_logits": list(logits),
            "bbox_mode": int(BoxMode.XYXY_ABS),
            "dataset": self._name,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._file) as part, open(part, "wb") as file:
            pickle.dump(content, file)
        return {}
