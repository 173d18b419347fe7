"""Class-aware RPN: an RPN that classifies its anchors into the classes (paper sec. 2.3 and 4.1).

The paper gives no layers or thresholds, and there is no released code. What it leaves open is taken
from the RPN of the released Faster R-CNN: the 3x3 convolution, the assignment of anchors and the
losses, all set by keys of MODEL.RPN.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    box_regression,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, permute_to_N_HWA_K
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import nn

from ...compat import require_private
from .._checks import check_images
from ..anchor_labels import label_anchors_inside
from ..soft_nms import SoftNMS

require_private(box_regression, "_dense_box_regression_loss")
require_private(fast_rcnn, "_log_classification_stats")


class ClassAwareRPNHead(StandardRPNHead):
    """Detectron2's RPN head, whose `objectness_logits` become K + 1 class logits per anchor.

    Per level, it turns C channels into A * (K + 1) logits, where background is the last of each
    anchor, and A * 4 class-agnostic box deltas.

    Args:
        num_classes: K, without the background.
        num_anchors: A, anchors per position.
        kwargs: arguments of `StandardRPNHead`; without `conv_dims` there is no 3x3 convolution.
    """

    @configurable
    def __init__(self, *, num_classes: int, num_anchors: int, **kwargs):
        super().__init__(num_anchors=num_anchors, **kwargs)
        logits = nn.Conv2d(self.anchor_deltas.in_channels, num_anchors * (num_classes + 1), 1)
        nn.init.normal_(logits.weight, std=0.01)
        nn.init.zeros_(logits.bias)  # type: ignore[arg-type]
        self.objectness_logits = logits

    @classmethod
    def from_config(cls, cfg, input_shape):
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {**super().from_config(cfg, input_shape), "num_classes": num_classes}


@META_ARCH_REGISTRY.register()
class ClassAwareRPN(RetinaNet):
    """Detects by a softmax over the classes at every anchor, in one stage.

    Input, box deltas, anchors and their matching are those of Detectron2's `RetinaNet`, sampling
    and losses those of its RPN, decoding that of its Fast R-CNN.

    Args:
        batch_size_per_image, positive_fraction: how many anchors of an image are sampled (paper
            sec. 4.1: 256), and the maximum share of positive ones.
        anchor_boundary_thresh: anchors that cross the border of the image by more pixels than this
            are left out of training; below 0 all are kept.
        loss_weight: weights of "loss_cls" and "loss_box_reg".
        soft_nms: replaces the NMS of inference (TEST.SOFT_NMS).
        kwargs: arguments of `RetinaNet`; its focal loss is not used. `head` is a
            `ClassAwareRPNHead`. `test_topk_candidates` is the number of anchors per level and image
            that are decoded, chosen by their highest class score.
    """

    @configurable
    def __init__(
        self,
        *,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: dict[str, float],
        soft_nms: SoftNMS | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.anchor_boundary_thresh = anchor_boundary_thresh
        self.loss_weight = loss_weight
        self.soft_nms = soft_nms

    @classmethod
    def from_config(cls, cfg):
        rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        if not set(rpn.IN_FEATURES) <= set(shapes):
            raise ValueError(
                f"MODEL.RPN.IN_FEATURES is {rpn.IN_FEATURES}, but the backbone gives "
                f"{', '.join(shapes)}: choose among those"
            )
        shapes = [shapes[f] for f in rpn.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": ClassAwareRPNHead(cfg, shapes),
            "head_in_features": rpn.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(
                rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True
            ),
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_cls": rpn.LOSS_WEIGHT,
                "loss_box_reg": rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
            },
            "soft_nms": SoftNMS.from_config(cfg),
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "test_topk_candidates": rpn.PRE_NMS_TOPK_TEST,
            "test_score_thresh": heads.SCORE_THRESH_TEST,
            "test_nms_thresh": heads.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward(self, batched_inputs):
        """Return losses in training, otherwise {"instances": Instances} per image, as every
        Detectron2 model does.

        Raises:
            ValueError: no image is given.
        """
        images = self.preprocess_image(batched_inputs)
        image_sizes, predictions = images.image_sizes, self.predict_anchors(images)
        if not self.training:
            return [
                {"instances": detector_postprocess(found, *_output_size(x, image_size))}
                for x, found, image_size in zip(
                    batched_inputs,
                    self.inference(*predictions, image_sizes),
                    image_sizes,
                    strict=True,
                )
            ]
        anchors, logits, deltas = predictions
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            with torch.no_grad():
                self.visualize_training(batched_inputs, self.inference(*predictions, image_sizes))
        return losses

    @torch.no_grad()
    def predict_raw(self, inputs, boxes=None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Predict boxes and probabilities before score threshold and NMS.

        Args:
            inputs: those of `forward`, N dicts.
            boxes: must be None; other detectors score given boxes in a second pass.

        Returns:
            per image, boxes (R, 1, 4), the same for every class, as (x0, y0, x1, y1) in pixels of
            the original image ("height" and "width" of the input) and clipped to it; and
            probabilities (R, K + 1), background last. R is at most `test_topk_candidates` per
            level.

        Raises:
            ValueError: no image is given, or `boxes` are.
        """
        assert not self.training, "predict_raw is inference: call eval() first"
        if boxes is not None:
            raise ValueError(
                "ClassAwareRPN classifies its own anchors and has no second pass that could score "
                "given boxes: use box voting only, TEST.BOX_AVERAGE.ITERATIONS 1"
            )
        images = self.preprocess_image(inputs)
        anchors, logits, deltas = self.predict_anchors(images)
        predictions = self._decode(anchors, logits, deltas, images.image_sizes)
        results = []
        for x, (height, width), (decoded, scores) in zip(
            inputs, images.image_sizes, predictions, strict=True
        ):
            output_height, output_width = _output_size(x, (height, width))
            decoded.scale(output_width / width, output_height / height)
            results.append((decoded.tensor[:, None], scores))
        return results

    def preprocess_image(self, batched_inputs):
        """Same as Detectron2's.

        Raises:
            ValueError: no image is given.
        """
        check_images(self, batched_inputs)
        return super().preprocess_image(batched_inputs)

    def predict_anchors(self, images):
        """Per level, anchors (R,), logits (N, R, K + 1) and deltas (N, R, 4) of an ImageList."""
        features = self.backbone(images.tensor)
        features = [features[f] for f in self.head_in_features]
        logits, deltas = self.head(features)
        return (
            self.anchor_generator(features),
            [permute_to_N_HWA_K(x, self.num_classes + 1) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
        )

    @torch.no_grad()
    def label_anchors(self, anchors, gt_instances):
        """Match anchors with the ground truth, as `RetinaNet` does, and sample them, as the RPN
        does. Only anchors inside the image compete, see `label_anchors_inside`.

        Args:
            anchors: Boxes of every level, R in all.
            gt_instances: of N images.

        Returns:
            N labels (R,): the class for sampled positive anchors, K for sampled negative ones, -1
            for all others; and N matched boxes (R, 4), zeros for anchors that are not sampled.
        """
        match = super().label_anchors

        def label(candidates, gt):
            (matched,), (matched_boxes,) = match([candidates], [gt])
            sampled = torch.cat(
                subsample_labels(
                    matched, self.batch_size_per_image, self.positive_fraction, self.num_classes
                )
            )
            labels, boxes = torch.full_like(matched, -1), torch.zeros_like(matched_boxes)
            labels[sampled], boxes[sampled] = matched[sampled], matched_boxes[sampled]
            return labels, boxes

        return label_anchors_inside(label, anchors, gt_instances, self.anchor_boundary_thresh)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """Mean cross-entropy of the sampled anchors, and smooth L1 of the positive ones, summed and
        divided by the number to be sampled (released rpn_cls_prob and rpn_loc_loss).

        Args:
            anchors, pred_logits, pred_anchor_deltas: of every level, see `predict_anchors`.
            gt_labels, gt_boxes: see `label_anchors`.
        """
        num_images = len(gt_labels)
        gt_labels = torch.stack(gt_labels)  # (N, R)
        sampled = gt_labels >= 0
        positive = sampled & (gt_labels < self.num_classes)
        num_sampled, num_positive = sampled.sum().item(), positive.sum().item()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (num_sampled - num_positive) / num_images)

        logits, classes = torch.cat(pred_logits, dim=1)[sampled], gt_labels[sampled]
        fast_rcnn._log_classification_stats(logits, classes, "rpn")
        loss_cls = F.cross_entropy(logits, classes, reduction="sum")
        loss_box_reg = box_regression._dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        losses = {
            "loss_cls": loss_cls / max(num_sampled, 1),
            "loss_box_reg": loss_box_reg / (self.batch_size_per_image * num_images),
        }
        return {name: loss * self.loss_weight[name] for name, loss in losses.items()}

    def inference(self, anchors, pred_logits, pred_anchor_deltas, image_sizes):
        """Detect in N images: Instances in input pixels with pred_boxes, scores and pred_classes.

        Args:
            anchors, pred_logits, pred_anchor_deltas: of every level, see `predict_anchors`.
            image_sizes: N (height, width).
        """
        decoded = self._decode(anchors, pred_logits, pred_anchor_deltas, image_sizes)
        boxes, scores = zip(*decoded, strict=True)
        arguments = (
            [b.tensor for b in boxes],
            scores,
            image_sizes,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.max_detections_per_image,
        )
        if self.soft_nms:
            return self.soft_nms.detect(*arguments)
        return fast_rcnn.fast_rcnn_inference(*arguments)[0]

    def _decode(self, anchors, pred_logits, pred_anchor_deltas, image_sizes):
        """Yield R Boxes in input pixels, clipped to the image, and scores (R, K + 1) per image."""
        for i, image_size in enumerate(image_sizes):
            boxes, scores = [], []
            for level_anchors, logits, deltas in zip(
                anchors, pred_logits, pred_anchor_deltas, strict=True
            ):
                probs = logits[i].float().softmax(dim=1)
                best = probs[:, :-1].amax(dim=1)
                top = top_indices(best, self.test_topk_candidates)
                boxes.append(
                    self.box2box_transform.apply_deltas(deltas[i][top], level_anchors.tensor[top])
                )
                scores.append(probs[top])
            boxes = Boxes(torch.cat(boxes))
            boxes.clip(image_size)
            inside = boxes.nonempty()  # the others are in the padding of a smaller image
            yield boxes[inside], torch.cat(scores)[inside]


def top_indices(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k highest of R scores, or of all if there are fewer, best first."""
    return scores.topk(min(k, len(scores))).indices


def _output_size(x: dict, image_size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) to which detections of an input are scaled."""
    return x.get("height", image_size[0]), x.get("width", image_size[1])
