"""Labels of anchors as in the released code: only those inside the image compete for an object."""

import torch
from detectron2.structures import Boxes, pairwise_iou


def label_anchors_inside(label, anchors, gt_instances, boundary_thresh: float, last_pixel: int = 0):
    """Label the anchors inside each image; the others get -1 (released lib/rpn/rpn.py).

    Detectron2's RPN matches all anchors and then leaves out those outside, even if no other anchor
    covers an object.

    Args:
        label: function of R' Boxes and the ground truth of one image, which returns labels (R',)
            and matched boxes (R', 4) of these anchors.
        anchors: Boxes of every level, R in all.
        gt_instances: of N images.
        boundary_thresh: by how many pixels an anchor may cross the border; below 0 all compete.
        last_pixel: 1 keeps an anchor that ends where the image ends, since released boxes include
            their last pixel; 0 leaves it out, as Detectron2 does.

    Returns:
        N labels (R,), and N matched boxes (R, 4), zeros for anchors outside.
    """
    anchors = Boxes.cat(anchors)
    gt_labels, gt_boxes = [], []
    for gt in gt_instances:
        inside = torch.arange(len(anchors), device=anchors.device)
        if boundary_thresh >= 0:
            size = tuple(n + last_pixel for n in gt.image_size)
            inside = inside[anchors.inside_box(size, boundary_thresh)]
        candidates = anchors[inside]
        # For an object that no anchor overlaps, every anchor would count as the best match.
        gt = gt[(pairwise_iou(gt.gt_boxes, candidates) > 0).any(dim=1)]
        labels, boxes = label(candidates, gt)
        gt_labels.append(labels.new_full((len(anchors),), -1))
        gt_boxes.append(torch.zeros_like(anchors.tensor))
        gt_labels[-1][inside] = labels
        gt_boxes[-1][inside] = boxes
    return gt_labels, gt_boxes
