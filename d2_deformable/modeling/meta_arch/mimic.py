"""Training with R-CNN feature mimicking (Zhu et al. 2019, "Deformable ConvNets v2", sec. 3.3).

The features that the box head computes from the map of the whole image are pulled towards those
that the same network computes from the RoI alone, cropped and resized, where nothing outside it can
be seen. Only training differs; inference is that of `GeneralizedRCNN`.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ROIAlign, cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from torch import nn

from .._checks import check_config
from .rcnn import DeformRCNN


@META_ARCH_REGISTRY.register()
class MimicRCNN(DeformRCNN):
    """`GeneralizedRCNN` with two more losses in training: "loss_mimic" and "loss_rcnn_cls".

    Of every image, positive RoIs are drawn from those that train the box head. Each is cropped from
    the network's input, resized, and passed through the same backbone, RoI pooling (of the whole
    crop) and box head. "loss_mimic" is 1 - cosine of these features and those that the box head
    gives for the RoI in the image, summed over the RoIs of an image (eq. 4) and averaged over
    images. "loss_rcnn_cls" is the cross-entropy of a classifier on the features of the crops,
    averaged over RoIs. The gradient of both reaches all they are computed from.

    Batch normalisation that is not frozen also sees the crops.

    Args:
        mimic_rois: the most RoIs of an image.
        mimic_crop_size: height and width of a resized crop, in pixels; a multiple of the backbone's
            `size_divisibility`.
        mimic_loss_weight: factor of both losses.
        kwargs: of `detectron2.modeling.GeneralizedRCNN`. The RoI heads have a box pooler and one
            box head, as `StandardROIHeads` do.

    Raises:
        ValueError: a value that the network cannot have.
    """

    @configurable
    def __init__(
        self,
        *,
        mimic_rois: int = 32,
        mimic_crop_size: int = 224,
        mimic_loss_weight: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        heads, step = self.roi_heads, max(1, self.backbone.size_divisibility)
        if not hasattr(heads, "box_pooler") or not hasattr(heads.box_head, "output_shape"):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE MimicRCNN got MODEL.ROI_HEADS.NAME {type(heads).__name__}"
                "; expected RoI heads with one box head. Choose DeformROIHeads or StandardROIHeads"
            )
        if mimic_rois < 1 or not mimic_loss_weight >= 0:
            raise ValueError(
                f"MODEL.MIMIC: NUM_ROIS is {mimic_rois} and LOSS_WEIGHT {mimic_loss_weight}; "
                "expected at least 1 RoI, and a weight that is not negative"
            )
        if mimic_crop_size < 1 or mimic_crop_size % step:
            raise ValueError(
                f"MODEL.MIMIC.CROP_SIZE is {mimic_crop_size}; expected a multiple of {step} pixels "
                "for this backbone"
            )
        self.mimic_rois = mimic_rois
        self.mimic_crop_size = mimic_crop_size
        self.mimic_loss_weight = mimic_loss_weight
        # Averages where a crop has more pixels than it gets.
        self.mimic_crop = ROIAlign(mimic_crop_size, 1.0, sampling_ratio=0, aligned=True)
        shape = heads.box_head.output_shape
        features = shape.channels * (shape.height or 1) * (shape.width or 1)
        self.mimic_classifier = nn.Linear(features, heads.num_classes + 1)
        nn.init.normal_(self.mimic_classifier.weight, std=0.01)
        nn.init.zeros_(self.mimic_classifier.bias)

    @classmethod
    def from_config(cls, cfg):
        check_config(cfg)
        c = cfg.MODEL.MIMIC
        return super().from_config(cfg) | {
            "mimic_rois": c.NUM_ROIS,
            "mimic_crop_size": c.CROP_SIZE,
            "mimic_loss_weight": c.LOSS_WEIGHT,
        }

    def forward(self, batched_inputs):
        """Same as Detectron2's, with two more losses in training."""
        if not self.training:
            return super().forward(batched_inputs)
        calls = []
        hook = self.roi_heads.register_forward_hook(
            lambda _, args, output: calls.append((args, output))
        )
        try:
            losses = super().forward(batched_inputs)
        finally:
            hook.remove()
        (images, features, *_), (proposals, _) = calls[0]
        return losses | self._mimic_losses(images, features, proposals)

    def _mimic_losses(self, images, features, proposals) -> dict:
        """
        Args:
            images: ImageList of N images.
            features: {name: (N, C, H, W)} of the backbone.
            proposals: labelled Instances of each image, as the RoI heads sampled them.
        """
        chosen = [self._choose(p) for p in proposals]
        boxes = [p.proposal_boxes for p in chosen]
        classes = cat([p.gt_classes for p in chosen])
        if not len(classes):  # connected, since DDP waits for every gradient
            nothing = 0.0 * sum(p.sum() for p in self.mimic_classifier.parameters())
            return {"loss_mimic": nothing, "loss_rcnn_cls": nothing}
        crops = self._crop(images.tensor, boxes)
        size = float(self.mimic_crop_size)
        whole = Boxes(crops.new_tensor([[0.0, 0.0, size, size]]))
        of_crops = self._box_features(self.backbone(crops), [whole] * len(crops))
        of_images = self._box_features(features, boxes)
        apart = 1 - F.cosine_similarity(of_crops, of_images)
        scores = self.mimic_classifier(of_crops)
        return {
            "loss_mimic": self.mimic_loss_weight * apart.sum() / len(proposals),
            "loss_rcnn_cls": self.mimic_loss_weight * F.cross_entropy(scores, classes),
        }

    def _choose(self, proposals):
        """Draw at most `mimic_rois` of the foreground proposals of an image."""
        classes = proposals.gt_classes
        positive = ((classes >= 0) & (classes < self.roi_heads.num_classes)).nonzero()[:, 0]
        drawn = torch.randperm(len(positive), device=positive.device)[: self.mimic_rois]
        return proposals[positive[drawn]]

    @torch.no_grad()
    def _crop(self, images, boxes):
        """Crop and resize boxes of (N, 3, H, W): (R, 3, size, size)."""
        rois = [F.pad(b.tensor, (1, 0), value=float(index)) for index, b in enumerate(boxes)]
        return self.mimic_crop(images, cat(rois).to(images))

    def _box_features(self, features, boxes):
        """Features (R, D) of the box head."""
        heads = self.roi_heads
        pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
        return heads.box_head(pooled).flatten(1)
