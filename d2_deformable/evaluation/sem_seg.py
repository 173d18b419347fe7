"""Mean IoU of semantic segmentation, the same with every Detectron2, also as released."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2 import evaluation

from ..data.masks import read_mask

# TEST.SEM_SEG_RESOLUTION
RESOLUTIONS = ("full", "resized_ground_truth", "resized_prediction")


def check_resolution(value) -> None:
    """Refuse a value of TEST.SEM_SEG_RESOLUTION that has no meaning.

    Raises:
        ValueError: it is none of RESOLUTIONS.
    """
    if value not in RESOLUTIONS:
        raise ValueError(
            f"TEST.SEM_SEG_RESOLUTION is {value!r}; choose one of {', '.join(RESOLUTIONS)}"
        )


class SemSegEvaluator(evaluation.SemSegEvaluator):
    """Detectron2's SemSegEvaluator on masks of class indices, at a chosen resolution.

    A class counts in mIoU where the ground truth or a prediction has it, as in VOC and Cityscapes:
    one that is only predicted has IoU 0. Detectron2 0.5 does the same, its main branch leaves such
    a class out.

    Args:
        dataset_name: of a data set with "sem_seg_file_name", "stuff_classes" and "ignore_label".
        output_dir: for Detectron2's sem_seg_predictions.json and sem_seg_evaluation.pth.
        resolution: "full": predictions have the size of their ground truth; otherwise the nearest
            pixels of "resized_ground_truth" (released for VOC) or "resized_prediction" (released
            for Cityscapes) make them equal.
    """

    def __init__(self, dataset_name: str, output_dir=None, resolution: str = "full"):
        check_resolution(resolution)
        super().__init__(dataset_name, output_dir=output_dir)
        self._resolution = resolution
        self._compute_boundary_iou = False  # of Detectron2 main, and where cv2 is installed, only

    def process(self, inputs, outputs):
        """
        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", logits (K, H, W).

        Raises:
            ValueError: a prediction of another size than its ground truth.
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
                    f"{file}: is {tuple(truth.shape)}, but its prediction {tuple(pred.shape)}"
                )
            truth[truth == self._ignore_label] = self._num_classes
            # Row: predicted, column: true, the last column: ignored.
            side = self._num_classes + 1
            pairs = torch.bincount((side * pred + truth).flatten(), minlength=side * side)
            self._conf_matrix += pairs.reshape(side, side).numpy()
            self._predictions += self.encode_json_sem_seg(pred.numpy(), input_["file_name"])

    def evaluate(self):
        """{"sem_seg": mIoU, fwIoU, IoU-<class>, mACC, pACC, ACC-<class>}, in percent; None in all
        processes but the main one."""
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
    """(H, W) resized to `size` as OpenCV's INTER_NEAREST does, exact for indices."""
    return F.interpolate(labels[None, None].float(), size=tuple(size))[0, 0].long()
