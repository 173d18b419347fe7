"""Online hard example mining: the RoIs with the highest loss train the head.

Source: Shrivastava et al. 2016, and the released rfcn/operator_py/box_annotator_ohem.py: all
proposals and ground-truth boxes of an image are scored, and those with the highest sum of
classification and box loss are kept, without NMS among them.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss

from ...compat import require_private
from .._checks import check_config

require_private(StandardROIHeads, "_forward_box", "_sample_proposals")
require_private(CascadeROIHeads, "_forward_box", "_run_stage")


class OHEMMixin:
    """Adds MODEL.ROI_HEADS.SAMPLING to a Detectron2 ROIHeads class.

    List it before a class that has the `_forward_box` of `StandardROIHeads` or `CascadeROIHeads`:
    `class MyHeads(OHEMMixin, StandardROIHeads)`. The RoIs of a cascade are ranked by the loss of
    its first stage, and the selected ones pass through all stages. Mask and keypoint heads train on
    the selected RoIs too.

    Args:
        ohem: train on the `batch_size_per_image` proposals with the highest loss instead of a
            random sample (MODEL.ROI_HEADS.SAMPLING "ohem").
        kwargs: arguments of the other class.

    Raises:
        ValueError: a value that these heads cannot have.
    """

    training: bool
    batch_size_per_image: int

    @configurable
    def __init__(self, *, ohem: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.ohem = ohem
        if ohem:
            check_losses(self.ranking_predictor)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_config(cfg)
        sampling = cfg.MODEL.ROI_HEADS.SAMPLING
        if sampling not in ("random", "ohem"):
            raise ValueError(f"MODEL.ROI_HEADS.SAMPLING is {sampling!r}; choose 'random' or 'ohem'")
        return {**super().from_config(cfg, input_shape), "ohem": sampling == "ohem"}

    @property
    def ranking_predictor(self):
        """The `FastRCNNOutputLayers` whose losses rank the RoIs."""
        predictor = self.box_predictor
        return predictor[0] if isinstance(self, CascadeROIHeads) else predictor

    def predict_ranking(self, features, proposals):
        """Logits and deltas of `ranking_predictor`, for all proposals."""
        features = [features[name] for name in self.box_in_features]
        if isinstance(self, CascadeROIHeads):
            return self._run_stage(features, proposals, 0)
        x = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor(self.box_head(x))

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        """With OHEM, return all proposals that the matcher does not ignore, as candidates."""
        if not self.ohem:
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        candidates = (matched_labels != -1).nonzero()[:, 0]
        classes = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes):
            classes = torch.where(matched_labels == 1, gt_classes[matched_idxs], classes)
        return candidates, classes[candidates]

    def select(self, features, proposals) -> None:
        """With OHEM in training, keep the hard ones of the labelled `proposals`.

        The list is changed in place, since mask and keypoint heads get it next.
        """
        if not (self.training and self.ohem):
            return
        with torch.no_grad():
            predictions = self.predict_ranking(features, proposals)
            losses = loss_per_roi(self.ranking_predictor, predictions, proposals)
        # The few selected RoIs run again, with gradients: cheaper than gradients for all.
        proposals[:] = select_hard_examples(proposals, losses, self.batch_size_per_image)

    def _forward_box(self, features, proposals, *targets):
        self.select(features, proposals)
        return super()._forward_box(features, proposals, *targets)


def loss_per_roi(predictor, predictions, proposals) -> torch.Tensor:
    """Classification plus box loss of every RoI, (R,): `predictor.losses` before the mean.

    Args:
        predictor: a `FastRCNNOutputLayers` that `check_losses` accepts.
        predictions: its output, logits (R, K + 1) and deltas (R, 4) or (R, 4 * K).
        proposals: labelled Instances of every image, R in all.
    """
    logits, deltas = predictions
    classes = torch.cat([p.gt_classes for p in proposals])
    loss = F.cross_entropy(logits, classes, reduction="none")
    foreground = (classes < predictor.num_classes).nonzero()[:, 0]
    if len(foreground) == 0:
        return loss
    boxes = Boxes.cat([p.proposal_boxes for p in proposals])[foreground]
    # An image without objects has no gt_boxes and no foreground: its rows are never read.
    gt_boxes = Boxes.cat([p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals])
    deltas = deltas.view(len(classes), -1, 4)
    column = classes if deltas.shape[1] > 1 else torch.zeros_like(classes)
    box_loss = smooth_l1_loss(
        deltas[foreground, column[foreground]],
        predictor.box2box_transform.get_deltas(boxes.tensor, gt_boxes[foreground].tensor),
        predictor.smooth_l1_beta,
        reduction="none",
    )
    return loss.index_add(0, foreground, box_loss.sum(dim=1).to(loss.dtype))


def check_losses(predictor) -> None:
    """Refuse losses other than softmax cross-entropy and smooth L1, which `loss_per_roi` computes.

    Raises:
        ValueError: `predictor` trains on another loss.
    """
    box_loss = predictor.box_reg_loss_type
    sigmoid = getattr(predictor, "use_sigmoid_ce", False)  # Detectron2 0.5 has no such loss
    if box_loss != "smooth_l1" or sigmoid:
        raise ValueError(
            "MODEL.ROI_HEADS.SAMPLING ohem ranks by softmax and smooth L1 loss, but "
            f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {box_loss} and USE_SIGMOID_CE is {sigmoid}: "
            "set them to smooth_l1 and False, or SAMPLING to random"
        )


def select_hard_examples(proposals, losses: torch.Tensor, num_per_image: int):
    """The `num_per_image` proposals of each image with the highest loss.

    Args:
        proposals: Instances of every image.
        losses: (R,), all images in order.
    """
    return [
        p[loss.topk(min(num_per_image, len(p))).indices]
        for p, loss in zip(proposals, losses.split([len(p) for p in proposals]), strict=True)
    ]
