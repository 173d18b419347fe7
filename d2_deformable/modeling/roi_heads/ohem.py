"""Online hard example mining: the RoIs with the highest loss train the head.

Source: Shrivastava et al. 2016, and the released rfcn/operator_py/box_annotator_ohem.py: all
proposals and ground-truth boxes of an image are scored, and those with the highest sum of
classification and box loss are kept, without NMS among them.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss


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
