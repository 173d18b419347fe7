"""Mean IoU of semantic segmentation, the same with every version of Detectron2.

It can also be computed at the resolutions of the released code.
"""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2 import evaluation

from ..compat import require_private
from ..data.masks import read_mask

# TEST.SEM_SEG_RESOLUTION
RESOLUTIONS = ("full", "resized_ground_truth", "resized_prediction")


def check_resolution(value) -> None:
    """Reject an unknown value of TEST.SEM_SEG_RESOLUTION.

    Raises:
        ValueError: the value is not in RESOLUTIONS.
    """
    if value not in RESOLUTIONS:
        raise ValueError(
            f"TEST.SEM_SEG_RESOLUTION is {value!r}; choose one of {', '.join(RESOLUTIONS)}"
        )


class SemSegEvaluator(evaluation.SemSegEvaluator):
    """Detectron2's SemSegEvaluator on masks of class indices, at a chosen resolution.

    A class counts in mIoU if the ground truth or a prediction has it, as in VOC and Cityscapes: a
    class that is only predicted has IoU 0. Detectron2 0.5 does the same; its main branch leaves
    such a class out.

    Args:
        dataset_name: a data set with "sem_seg_file_name", "stuff_classes" and "ignore_label".
        output_dir: folder of Detectron2's sem_seg_predictions.json and sem_seg_evaluation.pth.
        resolution: with "full", predictions have the size of their ground truth. Otherwise one of
            the two is resized by nearest neighbour: "resized_ground_truth" (as released for VOC) or
            "resized_prediction" (as released for Cityscapes).
    """

    def __init__(self, dataset_name: str, output_dir=None, resolution: str = "full"):
        check_resolution(resolution)
        super().__init__(dataset_name, output_dir=output_dir)
        self._resolution = resolution
        if hasattr(self, "_compute_boundary_iou"):
            # Detectron2 main computes it, and only if cv2 is installed.
            self._compute_boundary_iou = False

    def reset(self):
        super().reset()
        require_private(self, "_class_names", "_conf_matrix", "_ignore_label", "_num_classes")
        require_private(self, "_predictions")

    def process(self, inputs, outputs):
        """Add predictions to the confusion matrix.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", logits (K, H, W).

        Raises:
            ValueError: a prediction and its ground truth differ in size.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            file = self.input_file_to_gt_file[input_["file_name"]]
            truth = torch.from_numpy(read_mask(file).astype(np.int64))
            pred = output["sem_seg"].argmax(dim=0).cpu()
            if self._resolution == "resized_ground_truth":
                truth = _nearest(truth, pred.shape)
            elif self._resolution == "resized_prediction":
                pred = _nearest(pred, truth.shape)
            if pred.shape != truth.shape:
                raise ValueError(
                    f"{file}: is {tuple(truth.shape)}, but its prediction is {tuple(pred.shape)}"
                )
            truth[truth == self._ignore_label] = self._num_classes
            # Rows are predicted classes, columns true ones; the last column holds ignored pixels.
            side = self._num_classes + 1
            pairs = torch.bincount((side * pred + truth).flatten(), minlength=side * side)
            self._conf_matrix += pairs.reshape(side, side).numpy()
            self._predictions += self.encode_json_sem_seg(pred.numpy(), input_["file_name"])

    def evaluate(self):
        """Compute {"sem_seg": mIoU, fwIoU, IoU-<class>, mACC, pACC, ACC-<class>}, in percent.

        The result is None in all processes but the main one.
        """
        results = super().evaluate()
        if results is None:
            return None
        pairs = self._conf_matrix[:-1, :-1].astype(float)
        both = pairs.diagonal()
        union = pairs.sum(0) + pairs.sum(1) - both
        iou = np.divide(100 * both, union, out=np.full(len(union), np.nan), where=union > 0)
        names = (f"IoU-{name}" for name in self._class_names)
        results["sem_seg"].update(zip(names, iou), mIoU=float(np.nanmean(iou)))
        return results


def _nearest(labels, size):
    """Resize (H, W) to `size` as OpenCV's INTER_NEAREST does; exact for indices."""
    return F.interpolate(labels[None, None].float(), size=tuple(size))[0, 0].long()
