"""Proposals and labels of anchors by the rules of the released code."""

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Instances

from ..compat import require_private
from .anchor_labels import label_anchors_inside

require_private(RPN, "_decode_proposals")


@PROPOSAL_GENERATOR_REGISTRY.register()
class LegacyRPN(RPN):
    """Detectron2's RPN with the rules of the released operator_py/proposal.py, pyramid_proposal.py
    of its FPN, and lib/rpn/rpn.py.

    Proposals differ from Detectron2's in three rules:

    - An image (H, W) has anchors at floor(H / stride) x floor(W / stride) cells only, even where
      its feature map has one more row or column.
    - A box outside the image is clipped to one pixel at its border instead of dropped.
    - All levels of a pyramid compete: PRE_NMS_TOPK and the NMS hold for their union.

    In training, only anchors inside the image compete for an object, see `label_anchors_inside`;
    MODEL.RPN.BOUNDARY_THRESH is 0 in the released R-FCN and Faster R-CNN, and -1 in its FPN.

    With `RoundedAnchorGenerator` and MODEL.PROPOSAL_GENERATOR.MIN_SIZE 0 the proposals are those of
    the released networks, with two exceptions: boxes over 62 times as wide or high as their anchor,
    whose size Detectron2 limits, and the duplicates that pad the released proposals to 300.
    """

    @torch.no_grad()
    def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        """Like Detectron2's: per image, Instances with proposal_boxes and objectness_logits."""
        proposals, scores = [], []
        for boxes, level_anchors, logits, stride in zip(
            self._decode_proposals(anchors, pred_anchor_deltas),
            anchors,
            pred_objectness_logits,
            self.anchor_generator.strides,
            strict=True,
        ):
            # (N, 1, 2): width and height of every image, in a form that can be traced
            sizes = [
                boxes.new_full([1], n) for height, width in image_sizes for n in (width, height)
            ]
            sizes = torch.cat(sizes).view(-1, 1, 2)
            first = torch.minimum(boxes[..., :2].clamp(min=0), sizes - 1)
            last = torch.minimum(boxes[..., 2:].clamp(min=1), sizes)
            cells = (sizes / stride).floor() * stride
            beyond = (level_anchors.get_centers() > cells).any(dim=2)  # (N, R)
            # Anchors beyond the image get no area, so that their boxes are dropped, and the lowest
            # score, which keeps these out of the top k that are taken before.
            boxes = torch.cat([first, last], dim=2).masked_fill(beyond[..., None], 0.0)
            proposals.append(boxes)
            scores.append(logits.masked_fill(beyond, torch.finfo(logits.dtype).min))
        return find_top_rpn_proposals(
            [torch.cat(proposals, dim=1)],
            [torch.cat(scores, dim=1)],
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    @torch.no_grad()
    def label_and_sample_anchors(self, anchors, gt_instances):
        """Like Detectron2's: labels (R,) and matched boxes (R, 4) for each of N images."""
        of_all = super().label_and_sample_anchors

        def label(candidates, gt):
            # All candidates are inside: the larger size keeps those that end with the image.
            height, width = gt.image_size
            gt = Instances((height + 1, width + 1), gt_boxes=gt.gt_boxes)
            (labels,), (boxes,) = of_all([candidates], [gt])
            return labels, boxes

        threshold = self.anchor_boundary_thresh
        return label_anchors_inside(label, anchors, gt_instances, threshold, last_pixel=1)
